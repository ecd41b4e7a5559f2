"""Clips longer than a model was trained on: windows that hand the first image on to one another and are fused smoothly."""

import logging

import comfy.context_windows as windows
import comfy.model_management as management
import torch

from ..model.feature_run import MOVES
from ..model.trained_length import automatic_length
from .colors import matched_latent
from .options import VideoOptions, check_overlap

# Samplers that choose their noise levels themselves, three a step ("DPM-Solver", Lu et al. 2022, arXiv 2206.00927).
OWN_LEVELS = ("dpm_fast", "dpm_adaptive")


def window_starts(total: int, length: int, overlap: int, step: int, closed_loop: bool) -> list[int]:
    """First frames of the windows of one step, in the order of time; the first is 0, where the given image belongs.

    The others move from step to step, so that no joint stays in one place; in a loop the last run over the end of the clip.
    """
    stride = length - overlap
    offset = 1 + int(stride * (step * GOLDEN % 1)) if stride > 1 else 1
    if closed_loop:
        return [0, *range(offset, total, stride)]
    last = total - length
    return [0, *range(min(offset, last), last, stride), last]


GOLDEN = 0.6180339887498949  # multiples of it modulo 1 spread evenly, however many there are


def pyramid(length: int) -> torch.Tensor:
    """Weights [length] of a window's frames: highest in the middle, never 0."""
    position = torch.arange(length, dtype=torch.float32)
    return torch.minimum(position, length - 1 - position) + 1


class ClipWindows(windows.IndexListContextHandler):
    """Runs each step in windows of `length` frames, of which neighbors share `overlap`.

    SVD takes the first frame that it sees to be the given image. So a window that starts later is given, in place of the
    image, what the windows before it have just made of its first frame; with the image itself each window would start the
    clip again. With `keep_colors` that frame has the image's colors and contrast, or guidance would raise them from window to
    window. Memory is that of one window; controls and hooks see the host's own `context_window`.
    """

    def __init__(self, length: int, overlap: int, closed_loop: bool, keep_colors: bool):
        super().__init__(
            context_schedule=None, fuse_method=None, context_length=length, context_overlap=overlap,
            closed_loop=closed_loop, dim=0,
        )
        self.keep_colors = keep_colors
        self.own_levels = False  # does a sampler of OWN_LEVELS run?
        self._level, self._levels = None, 0
        self._latest = None  # (noise level, step) of the last call
        self._repeats = False  # does the sampler ask for several levels in a step?
        self.on_window = lambda indices, frames: None  # called when a window of a clip of `frames` frames begins

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

    def execute(self, calc_cond_batch, model, conds, x_in, timestep, model_options):
        """The denoised clip for each of `conds`, as the host's `calc_cond_batch` gives it."""
        self._model = model
        self.set_step(timestep, model_options)
        total = x_in.shape[0]
        weights = pyramid(self.context_length).to(x_in.device).reshape(-1, 1, 1, 1)
        sums = [torch.zeros_like(x_in) for _ in conds]
        weight = x_in.new_zeros(total, 1, 1, 1)
        following = self._following(total, timestep[0].item())
        for start in self._starts(total, self._step):
            management.throw_exception_if_processing_interrupted()
            indices = [(start + i) % total for i in range(self.context_length)]
            self.on_window(indices, total)
            window = windows.IndexListContextWindow(indices, dim=0, total_frames=total)
            window_conds = [self.get_resized_cond(cond, x_in, window) for cond in conds]
            if start > 0 and self.context_overlap > 0:
                image = model.process_latent_out(sums[0][start] / weight[start])
                window_conds = [_given(cond, image, self.keep_colors) for cond in window_conds]
            options = {**model_options, "transformer_options": {
                **model_options["transformer_options"], "context_window": window, MOVES: start not in following}}
            made = calc_cond_batch(model, window_conds, x_in[indices], timestep[indices], options)
            for total_of_cond, one in zip(sums, made, strict=True):
                total_of_cond[indices] += weights * one
            weight[indices] += weights
        return [total_of_cond / weight for total_of_cond in sums]


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
        return model
    length, overlap = options.window_frames or automatic_length(model, frames), options.window_overlap
    if length >= frames:
        if options.closed_loop:
            logging.warning(
                "%s: closed_loop does nothing to %d frames, since one window holds them all (%d). Make the clip longer, about "
                "twice that, or window_frames smaller.", node, frames, length,
            )
        return model
    if options.window_frames == 0:
        overlap = min(overlap, length // 2)
    check_overlap(node, length, overlap)
    return with_windows(model, length, overlap, options.closed_loop, options.keep_colors)


def with_windows(model, length: int, overlap: int, closed_loop: bool, keep_colors: bool):
    """A clone of the model that works in windows of `length` frames."""
    model = model.clone()
    model.model_options["context_handler"] = ClipWindows(length, overlap, closed_loop, keep_colors)
    windows.create_prepare_sampling_wrapper(model)  # memory is estimated for the window, not for the clip
    return model
