"""Preview of all frames while sampling: when a sheet of small images is drawn, and to whom it is sent."""

import logging
import math
import time

import comfy.model_management as management
import latent_preview
import torch
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from .preview_sheet import colors_for, draw, fitted
from .windows import ClipWindows

# Data of every event: node_id, prompt_id, fps, frames. While sampling also step (1 to steps) and steps; after a step there may
# also be a sheet: what `draw` returns. When a window begins there is also window, [first, last frame]; in a closed loop the last
# may be before the first; where several devices share the windows also at_work, [devices at work, all of them]. Once the clip is
# decoded: a sheet, and decoded, which is true. Of several takes: takes, their count, and where one is shown alone take (from 1) and
# seed, as text; the sheet at the end shows all of them side by side. Steps are those of all takes, frames those of one.
EVENT = "temporal_unet.preview"
USUAL_FPS = 6  # where the conditioning has none, as in the host's model
FPS = "temporal_unet.fps"  # key in the sampler's latent: frames per second at which the clip is shown once it is decoded
FIRST_IMAGE = "temporal_unet.first_image"  # in the positive: the clip's image [1, h, w, 3] in 0..1 at the latent's size
SHARE = 0.02  # of the time since the first step that the preview may take; the last sheet, and one in better colors, may take more
INTERVAL = 0.25  # least seconds between two sheets, between two steps reported without a sheet, and between two windows


def prepare_callbacks(model, steps: int, condition: dict, seeds: list[int]):
    """(callback, finish) for the runs of a clip's takes of `steps` steps each, by their seeds.

    callback(step, x0, x, total_steps, take) is the host's, with our preview of all frames added to it: of the take with that index,
    or of none where it is None. Steps are counted over all takes.

    `finish(samples)` is to be called with the result of the run: samplers report their last step before they have computed it.

    `condition` is the first of the positive: it may hold "fps", the frames per second at which the clip is shown, and the image
    that colors are fitted to. Where the MODEL works in our windows, these are reported too. Our preview is left out where no
    client queued the prompt, and where the prompt asks for no previews (the editor's live preview method: none). It is shown
    where ComfyUI itself was started without previews, which is its default.
    """
    standard = latent_preview.prepare_callback(model, steps * len(seeds))
    send = sender(fps_of(condition))
    if send is None:
        return lambda step, x0, x, total_steps, take: standard(step, x0, x, total_steps), lambda samples: None
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    quick, better = colors_for(previewer, model.model.latent_format)
    preview = FramePreview(_fitted(quick, model, condition), send, better=better, takes=len(seeds))
    preview.show_take(0, seeds)
    safely = _never_fatal(preview)
    handler = model.model_options.get("context_handler")
    if isinstance(handler, ClipWindows):
        windows = WindowPreview(preview, steps * len(seeds))
        handler.on_window = windows.begin
        handler.on_lanes = lambda busy, lanes: safely(windows.report, busy, lanes)

    def callback(step, x0, x, total_steps, take):
        standard(step, x0, x, total_steps)  # first: its copy of an image waits for the device, so ours need not
        if take is not None:
            preview.show_take(take, seeds)
            safely(preview, step, x0, total_steps)

    def finish(samples):
        safely(lambda: preview.finish(model.model.process_latent_in(samples.to(model.load_device))))

    return callback, finish


def fps_of(condition: dict) -> float:
    """Frames per second at which a clip of this condition is shown."""
    return condition.get("fps", USUAL_FPS)


def _fitted(colors, model, condition):
    """The colors, fitted to the clip's own image where SVD Image to Video or Continue Video made the condition."""
    latent, image = condition.get("concat_latent_image"), condition.get(FIRST_IMAGE)
    if latent is None or image is None or latent.shape[-2:] != image.shape[1:3]:  # of another node, or changed by one
        return colors
    return fitted(colors, model.model.process_latent_in(latent)[0], image[0])


def _never_fatal(preview: "FramePreview"):
    """safely(function, *args), which calls a function of the preview and lets no error of it end the run.

    No run is worth a preview, and what it draws with may be another pack's, or run out of memory. After an error the preview
    goes on in quick colors, and after an error in these it stops; the log says each once.
    """
    quick, stopped = preview.colors, False

    def safely(function, *args):
        nonlocal stopped
        while not stopped:
            try:
                return function(*args)
            except management.InterruptProcessingException:
                raise
            except Exception:  # noqa: BLE001 - any error, as said above
                stopped = preview.colors is quick and preview.better is None
                way = "without it" if stopped else "with quick colors"
                logging.warning("Temporal UNet: the preview of the frames failed; the run goes on %s.", way, exc_info=True)
                preview.colors, preview.better = quick, None

    return safely


def sender(fps: float, find_node=lambda prompt, node_id: node_id):
    """A function that sends data to the client that queued the prompt, with the node's id; None where there is no client.

    The node is `find_node(prompt, node_id)` of the host's DynamicPrompt and the node that runs, by default that one; None: no
    node.
    """
    context = get_executing_context()
    if context is None:  # a script without a server
        return None
    from server import PromptServer  # not above: it cannot be imported everywhere that a script runs

    client = PromptServer.instance.client_id
    if client is None or _unwanted(context.prompt_id):  # the host takes None as "to everyone"
        return None
    prompt = get_progress_state().dynprompt
    node_id = find_node(prompt, context.node_id)
    if node_id is None:
        return None
    about = {"node_id": prompt.get_display_node_id(node_id), "prompt_id": context.prompt_id, "fps": fps}
    return lambda data: PromptServer.instance.send_sync(EVENT, {**about, **data}, client)


def _unwanted(prompt_id: str) -> bool:
    """Does the prompt ask for no previews? The host's own setting no longer shows whether the prompt or the server did."""
    from server import PromptServer

    running = PromptServer.instance.prompt_queue.currently_running.values()
    return any(extra.get("preview_method") == "none" for _, running_id, _, extra, *_ in running if running_id == prompt_id)


class FramePreview:
    """Calls `send` with the sheet of the denoised frames, where time allows, and with the step alone where it does not.

    At most one sheet in INTERVAL. Sheets take at most SHARE of the time since the first step; in it, time for the last sheet is
    kept back, estimated from the sheet before. The first step and the result are always shown. The first sheet is in `colors`,
    the second in `better` ones, which stay if two such sheets fit into the SHARE of the whole run. `clock` gives seconds. The
    result holds so many `takes`.
    """

    def __init__(self, colors, send, clock=time.perf_counter, better=None, takes=1):
        self.colors, self.better, self.clock, self.takes = colors, better, clock, takes
        self.send = lambda data: send({**data, **self.about})
        self.about: dict = {}  # what is said of the take that is shown
        self.first_step: float | None = None
        self.last_sheet = self.last_sent = -math.inf
        self.spent = self.expected = 0.0  # seconds: by all sheets, and by the next one
        self.done = self.steps = 0

    def __call__(self, step: int, x0: torch.Tensor, total_steps: int):
        """step counts from 0; x0 [frames, c, h, w] is what the host's samplers hand on as denoised."""
        self.done, self.steps = min(step + 1, total_steps), total_steps  # dpm_adaptive takes more steps than the schedule has
        if x0.is_nested or x0.ndim != 4:  # several latents in one, or a time axis of their own: not of this family
            return
        if step + 1 == total_steps:  # `finish` shows the result of it
            return
        now = self.clock()
        if self.first_step is None:
            self.first_step = now
            self._show(x0)
        elif self._due(now):
            if self.better is None:
                self._show(x0)
            else:
                self._try_better(x0, (now - self.first_step) / step * total_steps)
        elif now - self.last_sent >= INTERVAL:
            self.send({"step": self.done, "steps": self.steps, "frames": x0.shape[0]})
            self.last_sent = now

    def show_take(self, take: int, seeds: list[int]):
        """Says in all that is sent which of several takes is shown."""
        if self.takes > 1:  # a seed may be more than a number of JavaScript holds
            self.about = {"take": take + 1, "takes": self.takes, "seed": str(seeds[take])}

    def finish(self, samples: torch.Tensor):
        """Shows the result of the run, samples [takes * frames, c, h, w] in the scale of x0."""
        if self.done == 0:  # nothing ran: a denoise of 0
            return
        self.done = self.steps
        if self.takes > 1:
            self.about = {"takes": self.takes}
        self._show(samples, self.takes)

    def _due(self, now):
        if now - self.last_sheet < INTERVAL:
            return False
        return self.spent + 2 * self.expected <= SHARE * (now - self.first_step)  # this one and the last

    def _show(self, latents, takes=1):
        self.last_sheet = self.clock()
        self.send({"step": self.done, "steps": self.steps, **draw(latents, self.colors, takes)})
        self.last_sent = self.clock()
        self.expected = self.last_sent - self.last_sheet
        self.spent += self.expected

    def _try_better(self, latents, run):
        """Shows a sheet in the better colors, and keeps them if it and another one fit into the SHARE of `run` seconds.

        Else its own time does not count, so that quick sheets go on coming.
        """
        before, self.colors, self.better = (self.colors, self.expected, self.spent), self.better, None
        self._show(latents)
        if self.spent + self.expected > SHARE * run:
            self.colors, self.expected, self.spent = before


class WindowPreview:
    """Reports the frames of the window that begins, at most once in INTERVAL: of quick windows not every one."""

    def __init__(self, preview: FramePreview, steps: int):
        self.preview, self.steps = preview, steps
        self.last = -math.inf
        self.window: dict = {}  # that began last

    def begin(self, indices: list[int], frames: int):
        self.window = {"frames": frames, "window": [indices[0], indices[-1]]}

    def report(self, busy: int, lanes: int):
        """So many devices are at work, of those that share the windows."""
        now = self.preview.clock()
        if now - self.last < INTERVAL:
            return
        self.last = now
        step = min(self.preview.done + 1, self.steps)
        at_work = {"at_work": [busy, lanes]} if lanes > 1 else {}
        self.preview.send({"step": step, "steps": self.steps, **self.window, **at_work})
