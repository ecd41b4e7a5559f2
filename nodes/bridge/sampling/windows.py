"""Clips longer than a model was trained on: windows that hand the first image on to one another and are fused smoothly."""

import logging

import comfy.context_windows as windows
import torch

from ..model.feature_run import MOVES
from ..model.trained_length import automatic_length
from .colors import matched_latent
from .lanes import NetworkCall, is_elsewhere, lanes_of, run_calls
from .options import PREVIOUS_STEP, VideoOptions, check_overlap
from .window_step import WindowStep, window_starts

# Samplers that choose their noise levels themselves, three a step ("DPM-Solver", Lu et al. 2022, arXiv 2206.00927).
OWN_LEVELS = ("dpm_fast", "dpm_adaptive")


class ClipWindows(windows.IndexListContextHandler):
    """Runs each step in windows of `length` frames, of which neighbors share `overlap`.

    SVD takes the first frame that it sees to be the given image. So a window that starts later is given, in place of the
    image, what the windows before it have just made of its first frame; with the image itself each window would start the
    clip again. With `keep_colors` that frame has the image's colors and contrast, or guidance would raise them from window to
    window. With `from_previous_step` it is, but in the first step, what all windows of the step before have made of that frame:
    then no window waits for others of its step. Memory is that of one window; controls and hooks see the host's own
    `context_window`.
    """

    def __init__(self, length: int, overlap: int, closed_loop: bool, keep_colors: bool, from_previous_step: bool = False):
        super().__init__(
            context_schedule=None, fuse_method=None, context_length=length, context_overlap=overlap,
            closed_loop=closed_loop, dim=0,
        )
        self.keep_colors = keep_colors
        self.from_previous_step = from_previous_step
        self.on_window = lambda indices, frames: None  # called when a window of a clip of `frames` frames begins
        self.on_lanes = lambda busy, lanes: None  # the `report` of `run_calls`
        self.begin_run(own_levels=False)

    def begin_run(self, own_levels: bool) -> None:
        """Forgets the run before. own_levels: is the sampler one of OWN_LEVELS?"""
        self.own_levels = own_levels
        self._done: tuple[float | None, WindowStep | None] = None, None  # noise level and windows of the last step,
        self._before: WindowStep | None = None  # and the windows of the one before
        self._level, self._levels = None, 0
        self._latest = None  # (noise level, step) of the last call
        self._repeats = False  # does the sampler ask for several levels in a step?

    def set_step(self, timestep, model_options):
        """Finds the step from the noise level timestep [t], as the host does where the level is one of the schedule's.

        A sampler with levels of its own keeps one offset through its step: it would take a change of offset for its own error.
        """
        if not self.own_levels:
            return super().set_step(timestep, model_options)
        level = timestep[0].item()
        if level != self._level:  # a node on the model may ask for a level twice
            self._level, self._step = level, self._levels // 3
            self._levels += 1

    def _starts(self, total, step):
        return window_starts(total, self.context_length, self.context_overlap, step, self.closed_loop)

    def most_lasting(self, total: int) -> int:
        """How many windows of a clip of so many frames begin where they began in the step before, at most."""
        steps = [set(self._starts(total, step)) for step in range(50)]
        return max(len(one & other) for one, other in zip(steps, steps[1:], strict=False))

    def _following(self, total, level):
        """First frames of the windows at the next noise level, as far as they can be told."""
        if self._latest is not None and self._latest[0] != level and self._latest[1] == self._step:
            self._repeats = True
        self._latest = level, self._step
        return self._starts(total, self._step if self._repeats else self._step + 1)

    def should_use_context(self, model, conds, x_in, timestep, model_options):
        return x_in.shape[0] > self.context_length

    def step_of(self, level, model_options, total: int, conds) -> WindowStep:
        """The windows of a clip of `total` frames at the noise level [t], with nothing in them yet."""
        self.set_step(level, model_options)
        branches = [branch for branch, cond in enumerate(conds) if cond is not None]
        return WindowStep(self._starts(total, self._step), self.context_length, total, branches)

    def _handing(self, level: float, step: WindowStep) -> WindowStep | None:
        """The windows that hand over images to those of `step` at this noise level; None: those before them in the step itself.

        A node on the model may ask for a level twice.
        """
        if not self.from_previous_step:
            return None
        if level != self._done[0]:
            self._before, self._done = self._done[1], (level, step)
        return self._before

    def execute(self, calc_cond_batch, model, conds, x_in, timestep, model_options):
        """The denoised clip for each of `conds`, as the host's `calc_cond_batch` gives it."""
        total, lanes = x_in.shape[0], lanes_of(model_options, conds)
        step = self.step_of(timestep, model_options, total, conds)
        level = timestep[0].item()
        following = self._following(total, level)
        calls = WindowCalls(self, calc_cond_batch, model, conds, self._handing(level, step))
        one_by_one = len(lanes) > 1 or is_elsewhere(model_options)
        run_calls(lanes, StepWork(calls, step, x_in, timestep, following, one_by_one), self.on_lanes)
        made = {branch: step.mean(range(total), branch) for branch in step.branches}
        return [made[branch] if branch in made else torch.zeros_like(x_in) for branch in range(len(conds))]


class WindowCalls:
    """Makes the calls of the network for the windows of a clip, on the host's conds of its branches.

    `before`: the step whose windows, all done, hand over the images; None: the windows before in the same step do.
    """

    def __init__(self, handler: ClipWindows, calc_cond_batch, model, conds, before: WindowStep | None):
        self.before = before
        self.handler, self.calc_cond_batch, self.model, self.conds = handler, calc_cond_batch, model, conds
        self.chained = [handler.context_overlap > 0 and _has_image(cond) for cond in conds]
        handler._model = model  # the host's own way to resize conds asks it

    def ready(self, step: WindowStep, window: int, branch: int) -> bool:
        """Has what this branch of the window needs of the windows before it been made?"""
        free = step.frames[window][0] == 0 or not self.chained[branch] or self.before is not None
        return free or step.has_image(window)

    def call(self, step: WindowStep, window: int, branches: list[int], x, timestep, moves=False, done=lambda: None) -> NetworkCall:
        """The call on a window of the clip x [t, c, h, w] at the levels timestep [t]; its predictions go into `step`.

        moves: does the next step have no window of these frames? `done` is called once the predictions are in.
        """
        frames, total = step.frames[window], x.shape[0]
        context = windows.IndexListContextWindow(frames, dim=0, total_frames=total)
        conds = [
            self.handler.get_resized_cond(cond, x, context) if branch in branches else None
            for branch, cond in enumerate(self.conds)
        ]
        if frames[0] > 0 and any(self.chained[branch] for branch in branches):
            image = self.model.process_latent_out(self._image(step, window))
            conds = [_given(cond, image, self.handler.keep_colors) for cond in conds]
        if branches[0] == 0:
            self.handler.on_window(frames, total)

        def run(options):
            marks = {"context_window": context, MOVES: moves}
            options = {**options, "transformer_options": {**options["transformer_options"], **marks}}
            return self.calc_cond_batch(self.model, conds, x[frames], timestep[frames], options)

        def put(made):
            for branch in branches:
                step.put(window, branch, made[branch])
            done()

        return NetworkCall(run, put)

    def _image(self, step, window):
        """What was made of the window's first frame [c, h, w]."""
        if self.before is None:
            return step.image(window)
        [image] = self.before.mean(step.frames[window][:1], self.before.branches[0])
        return image


class StepWork:
    """The calls of one step of a clip: all branches of a window together, or one by one, which more devices can share."""

    def __init__(self, calls: WindowCalls, step: WindowStep, x, timestep, following: list[int], one_by_one: bool):
        self.calls, self.step, self.x, self.timestep, self.following = calls, step, x, timestep, following
        parts = [[branch] for branch in step.branches] if one_by_one else [step.branches]
        self.waiting = [(window, branches) for window in range(len(step.frames)) for branches in parts]

    def next_call(self) -> NetworkCall | None:
        for index, (window, branches) in enumerate(self.waiting):
            if all(self.calls.ready(self.step, window, branch) for branch in branches):
                del self.waiting[index]
                moves = self.step.frames[window][0] not in self.following
                return self.calls.call(self.step, window, branches, self.x, self.timestep, moves)
        return None


def _has_image(conditions) -> bool:
    """Does a condition of this branch hold an image? An unconditioned one holds zeros."""
    concats = [condition["model_conds"].get("c_concat") for condition in conditions or ()]
    return any(concat is not None and bool(concat.cond.any()) for concat in concats)


def _given(conditions, image: torch.Tensor, keep_colors: bool):
    """The conditions with `image` [c, h, w] in place of theirs, where they have one (an unconditioned branch has zeros)."""
    if conditions is None:
        return None
    out = []
    for condition in conditions:
        model_conds = dict(condition["model_conds"])
        old = model_conds.get("c_concat")
        if old is not None and old.cond.any():
            new = image.to(old.cond).expand_as(old.cond)
            model_conds["c_concat"] = old._copy_with(matched_latent(new, old.cond) if keep_colors else new)
        out.append({**condition, "model_conds": model_conds})
    return out


def windowed(model, frames: int, options: VideoOptions, node: str):
    """The model with windows where the clip is longer than one; those of the host's own node stay. Errors name `node`."""
    if options.window_frames == 0 and "context_handler" in model.model_options:
        _warn_hand_over(options, node, "the context windows of another node act")
        return model
    length, overlap = options.window_frames or automatic_length(model, frames), options.window_overlap
    if length >= frames:
        _warn_hand_over(options, node, f"one window holds all {frames} frames")
        if options.closed_loop:
            logging.warning(
                "%s: closed_loop does nothing to %d frames, since one window holds them all (%d). Make the clip longer, about "
                "twice that, or window_frames smaller.", node, frames, length,
            )
        return model
    if options.window_frames == 0:
        overlap = min(overlap, length // 2)
    check_overlap(node, length, overlap)
    if overlap == 0:
        _warn_hand_over(options, node, "windows that share no frames hand over no image")
    from_previous_step = options.hand_over == PREVIOUS_STEP
    return with_windows(model, length, overlap, options.closed_loop, options.keep_colors, from_previous_step)


def _warn_hand_over(options, node, reason):
    if options.hand_over == PREVIOUS_STEP:
        logging.warning("%s: hand_over = %s does nothing, since %s.", node, PREVIOUS_STEP, reason)


def with_windows(model, length: int, overlap: int, closed_loop: bool, keep_colors: bool, from_previous_step: bool = False):
    """A clone of the model that works in windows of `length` frames."""
    model = model.clone()
    model.model_options["context_handler"] = ClipWindows(length, overlap, closed_loop, keep_colors, from_previous_step)
    windows.create_prepare_sampling_wrapper(model)  # memory is estimated for the window, not for the clip
    return model
