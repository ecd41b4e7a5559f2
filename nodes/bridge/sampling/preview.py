"""Preview of all frames while sampling: a sheet of small pictures, for the browser that queued the prompt only."""

import base64
import io
import logging
import math
import time
from dataclasses import dataclass

import comfy.model_management as management
import comfy.taesd.taesd
import latent_preview
import torch
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch.nn import functional as F

from .windows import ClipWindows

# Data: node_id, prompt_id, fps, step (1 to steps), steps, frames; of a step that is done also what `draw` gives (not of every
# one), of a window that is begun (in the step that runs) also window, its first and last frame; in a loop the last may be
# before the first.
EVENT = "temporal_unet.preview"
USUAL_FPS = 6  # where the conditioning names none, as the host's model takes it
SHARE = 0.02  # of the time since the first step that the preview may take; two sheets are shown even where they take more
INTERVAL = 0.25  # seconds between two sheets, between two steps that are told without one, and between two windows
SHEET_PIXELS = 1024 * 1024
LONGEST, SHORTEST = 128, 48  # pixels of a frame's longer side: where there is room, and before frames are left out
DECODE_BATCH = 4  # frames of at most 512x512 pixels: about the memory of the host's own preview of one large picture
JPEG_QUALITY = 80


def prepare_callbacks(model, steps: int, fps: float = USUAL_FPS):
    """The host's callback(step, x0, x, total_steps) of progress and preview for the MODEL, with the preview of all frames.

    And finish(samples), to be called with the result of the run: samplers tell their last step before they have made it.

    `fps`: frames per second at which the clip is to be shown. Where the MODEL works in our windows, these are told too. Ours
    is left out where no client queued the prompt, and where that asks for none (the editor's live preview method: none). It
    is there where ComfyUI itself was started without previews, which is how it starts when nothing is said.
    """
    standard = latent_preview.prepare_callback(model, steps)
    send = _sender(fps)
    if send is None:
        return standard, lambda samples: None
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    quick, better = colours_for(previewer, model.model.latent_format)
    preview = FramePreview(quick, send, better=better)
    safely = _never_fatal(preview)
    handler = model.model_options.get("context_handler")
    if isinstance(handler, ClipWindows):
        show_window = WindowPreview(preview, steps)
        handler.on_window = lambda indices, frames: safely(show_window, indices, frames)

    def callback(step, x0, x, total_steps):
        standard(step, x0, x, total_steps)  # first: its copy of a picture waits for the device, so ours need not
        safely(preview, step, x0, total_steps)

    def finish(samples):
        safely(lambda: preview.finish(model.model.process_latent_in(samples.to(model.load_device))))

    return callback, finish


def _never_fatal(preview: "FramePreview"):
    """A function that calls what it is given, a part of the preview, and lets no error of that end the run.

    A preview is worth no run, and what it draws with may be another pack's, or run out of memory. After an error it goes on in
    quick colours, and after one in these it stops; the log says each once.
    """
    quick, stopped = preview.colours, False

    def safely(part, *args):
        nonlocal stopped
        while not stopped:
            try:
                return part(*args)
            except management.InterruptProcessingException:
                raise
            except Exception:  # noqa: BLE001 - whatever it is, as said above
                stopped = preview.colours is quick and preview.better is None
                way = "without it" if stopped else "with quick colors"
                logging.warning("Temporal UNet: the preview of the frames failed; the run goes on %s.", way, exc_info=True)
                preview.colours, preview.better = quick, None

    return safely


def _sender(fps):
    """A function that sends data to the client that queued the prompt, with the node's id; None where there is no client."""
    context = get_executing_context()
    if context is None:  # a script without a server
        return None
    from server import PromptServer  # not above: it cannot be imported everywhere that a script runs

    client = PromptServer.instance.client_id
    if client is None or _unwanted(context.prompt_id):  # the host takes None as "to everyone"
        return None
    node_id = get_progress_state().dynprompt.get_display_node_id(context.node_id)
    about = {"node_id": node_id, "prompt_id": context.prompt_id, "fps": fps}
    return lambda data: PromptServer.instance.send_sync(EVENT, {**about, **data}, client)


def _unwanted(prompt_id: str) -> bool:
    """Does the prompt ask for no previews? The host's own setting tells no longer whether the prompt or its start said so."""
    from server import PromptServer

    running = PromptServer.instance.prompt_queue.currently_running.values()
    return any(extra.get("preview_method") == "none" for _, running_id, _, extra, *_ in running if running_id == prompt_id)


class FramePreview:
    """Calls `send` with the sheet of the denoised frames, where time allows, and with the step alone where it does not.

    At most one sheet in INTERVAL, and at most SHARE of the time since the first step, of which there is always kept what the
    last sheet will take: as long as the one before. The first step and the result are always shown. The first sheet is in
    `colours`; at the second step, which tells how long the run will be, those in `better` ones take over if two fit into
    SHARE of it. `clock` gives seconds.
    """

    def __init__(self, colours, send, clock=time.perf_counter, better=None):
        self.colours, self.better, self.send, self.clock = colours, better, send, clock
        self.first_step: float | None = None
        self.last_sheet = self.last_told = -math.inf
        self.spent = self.expected = 0.0
        self.done = self.steps = 0

    def __call__(self, step: int, x0: torch.Tensor, total_steps: int):
        """step counts from 0; x0 [frames, c, h, w] is what the host's samplers hand on as denoised."""
        self.done, self.steps = min(step + 1, total_steps), total_steps  # dpm_adaptive takes more steps than the schedule has
        if x0.is_nested or x0.ndim != 4:  # several latents in one, or a time axis of their own: not of this family
            return
        if step + 1 == total_steps:  # `finish` shows what comes of it
            return
        now = self.clock()
        if self.first_step is None:
            self.first_step = now
        elif self.better is not None:
            self._choose_colours(x0, (now - self.first_step) / step * total_steps)
        if self._due(now):
            self._show(x0)
        elif now - self.last_told >= INTERVAL:
            self.send({"step": self.done, "steps": self.steps, "frames": x0.shape[0]})
            self.last_told = now

    def finish(self, samples: torch.Tensor):
        """Shows the result of the run, samples [frames, c, h, w] in the scale of x0."""
        if self.done == 0:  # nothing ran: a denoise of 0
            return
        if self.better is not None and self.first_step is not None:
            self._choose_colours(samples, self.clock() - self.first_step)
        self.done = self.steps
        self._show(samples)

    def _choose_colours(self, latents, run):
        """Takes the better colours where a run of `run` seconds has time for two sheets in them, reckoned from one frame.

        From a small one first: on a CPU a whole one may by itself take more than its share.
        """
        for part in (4, 2, 1):
            start = self.clock()
            expected = seconds_to_draw(latents, self.better, self.clock, part)
            self.spent += self.clock() - start
            if self.spent + 2 * expected > SHARE * run:
                break
        else:
            self.colours, self.expected = self.better, expected
        self.better = None

    def _due(self, now):
        if now - self.last_sheet < INTERVAL:
            return False
        return self.spent + 2 * self.expected <= SHARE * (now - self.first_step)  # this one and the last

    def _show(self, latents):
        self.last_sheet = self.clock()
        self.send({"step": self.done, "steps": self.steps, **draw(latents, self.colours)})
        self.last_told = self.clock()
        self.expected = self.last_told - self.last_sheet
        self.spent += self.expected


class WindowPreview:
    """Tells the frames of the window that work begins on, at most once in INTERVAL: of quick windows not every one."""

    def __init__(self, preview: FramePreview, steps: int):
        self.preview, self.steps = preview, steps
        self.last = -math.inf

    def __call__(self, indices: list[int], frames: int):
        now = self.preview.clock()
        if now - self.last < INTERVAL:
            return
        self.last = now
        step = min(self.preview.done + 1, self.steps)
        window = [indices[0], indices[-1]]
        self.preview.send({"step": step, "steps": self.steps, "frames": frames, "window": window})


def draw(latents: torch.Tensor, colours) -> dict:
    """The frames of latents [frames, c, h, w] as one JPEG, with what is needed to cut it up.

    frames: of the clip. shown: the indices of those on the sheet, from its top left, row by row. columns, rows: of the sheet;
    cells after the last frame are black. width, height: of a frame on the sheet, in pixels. image: a data URL.
    """
    sheet = _sheet_of(latents, colours)
    pictures = colours(latents[:: sheet.shown.step], sheet.width, sheet.height)
    return {
        "frames": latents.shape[0], "shown": list(sheet.shown), "columns": sheet.columns, "rows": sheet.rows,
        "width": sheet.width, "height": sheet.height, "image": _jpeg(pictures, sheet),
    }


def seconds_to_draw(latents: torch.Tensor, colours, clock, part: int = 1) -> float:
    """What `draw` would take with frames of 1/part the width and height, reckoned from one."""
    sheet, times = _sheet_of(latents, colours), []
    for _ in range(2):  # the first time, a device also loads what it needs for that size
        start = clock()
        colours(latents[:1], math.ceil(sheet.width / part), math.ceil(sheet.height / part)).cpu()  # waits for the device
        times.append(clock() - start)
    return min(times) * len(sheet.shown)


def _sheet_of(latents, colours):
    frames, _, height, width = latents.shape
    return lay_out(frames, width * colours.pixels, height * colours.pixels)


@dataclass(frozen=True)
class Sheet:
    """`shown` frames of `width` x `height` pixels in `rows` of `columns`."""

    shown: range
    columns: int
    rows: int
    width: int
    height: int


def lay_out(frames: int, width: int, height: int) -> Sheet:
    """A nearly square sheet of about SHEET_PIXELS at most for frames of width x height pixels, which it never enlarges.

    A frame's longer side has at most LONGEST pixels. Of a clip too long for that it has fewer, down to SHORTEST; of one too
    long for that too, only every second frame is shown, or every third, and so on.
    """
    longer = max(width, height)
    fewest = width * height * min(1, SHORTEST / longer) ** 2
    shown = range(0, frames, math.ceil(frames * fewest / SHEET_PIXELS))
    scale = min(1, LONGEST / longer, math.sqrt(SHEET_PIXELS / (len(shown) * width * height)))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(len(shown), math.ceil(math.sqrt(len(shown) * height / width)))
    return Sheet(shown, columns, math.ceil(len(shown) / columns), width, height)


def colours_for(previewer, latent_format):
    """Quick colours, latent to RGB, and better ones: TAESD where the previewer has it, else None.

    Packs put previewers of their own in the host's place. Some extend the host's for TAESD and have none, or not under its name.
    """
    quick = LatentColours(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
    taesd = getattr(previewer, "taesd", None)
    return quick, DecodedColours(taesd) if isinstance(taesd, comfy.taesd.taesd.TAESD) else None


class LatentColours:
    """Latent to RGB by the factors [c][3] and bias [3] of a latent format, as the host's Latent2RGBPreviewer."""

    pixels = 1  # of a picture's side, for each of the latent's

    def __init__(self, factors: list, bias: list | None):
        self.factors = torch.tensor(factors).T
        self.bias = None if bias is None else torch.tensor(bias)

    def __call__(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """latents [n, c, h, w] to pictures [n, 3, height, width] in -1..1."""
        small = shrink(latents, width, height).movedim(1, -1)
        bias = None if self.bias is None else self.bias.to(small)
        return F.linear(small, self.factors.to(small), bias).movedim(-1, 1)


class DecodedColours:
    """The host's TAESD on latents that are made smaller first: whole, a clip would take it as long as some of the steps."""

    pixels = 8

    def __init__(self, taesd):
        self.taesd = taesd

    def __call__(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """latents [n, c, h, w] to pictures [n, 3, height, width] in about -1..1."""
        # Half a picture's size keeps about as many numbers as the picture has; smaller would blur it.
        h, w = min(latents.shape[-2], math.ceil(height / 2)), min(latents.shape[-1], math.ceil(width / 2))
        batches = shrink(latents, w, h).split(DECODE_BATCH)
        return torch.cat([shrink(self.taesd.decode(batch), width, height) for batch in batches])


def shrink(pictures: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """pictures [n, c, h, w], no smaller than that, to [n, c, height, width]."""
    if pictures.shape[-2:] == (height, width):  # the usual size, 1024x576: half the time of a sheet on a CPU
        return pictures
    # Means, then less than a half by interpolation: Apple's devices lack "area" for sizes that do not divide.
    means = F.avg_pool2d(pictures, (pictures.shape[-2] // height, pictures.shape[-1] // width))
    return F.interpolate(means, (height, width), mode="bilinear")


def _jpeg(pictures, sheet):
    """The data URL of the sheet with these pictures [n, 3, height, width] in -1..1."""
    pixels = ((pictures + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
    empty = pixels.new_zeros(sheet.rows * sheet.columns - len(pixels), *pixels.shape[1:])
    cells = torch.cat([pixels, empty]).unflatten(0, (sheet.rows, sheet.columns))
    whole = cells.permute(0, 3, 1, 4, 2).reshape(sheet.rows * sheet.height, sheet.columns * sheet.width, 3)
    file = io.BytesIO()
    # Full colour resolution, or neighbouring frames would share the colour of their borders.
    Image.fromarray(whole.cpu().numpy()).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
