"""Windows of several steps at the same time, for samplers that take the step of every frame by itself.

A frame may take its next step as soon as all windows over it are done, so the start of a long clip runs ahead of its end, and more
devices find work than one step has for them. The result is that of one step after the other.
"""

from collections.abc import Iterator

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from tqdm.auto import tqdm

from .critical_path import remaining_calls
from .lanes import NetworkCall, is_elsewhere, lanes_of, run_calls
from .window_step import WindowStep
from .windows import WindowCalls

SAMPLERS = ("euler", "ddim")  # the host runs both by the same function, "ddim" with other noise under a mask


def wavefront_sampler(name: str) -> comfy.samplers.Sampler:
    """The host's sampler of one of SAMPLERS, which works on several steps at a time where several devices may work."""
    return host_sampler(sample_wavefront, name)


def host_sampler(function, name: str) -> comfy.samplers.Sampler:
    """The host's sampler of one of SAMPLERS with another function in place of its own."""
    return comfy.samplers.KSAMPLER(function, inpaint_options={"random": True} if name == "ddim" else {})


@torch.no_grad()
def sample_wavefront(model, x, sigmas, extra_args, callback=None, disable=None):
    """Euler steps (Karras et al. 2022, arXiv 2206.00364, algorithm 1) of the clip x [t, 4, h, w] through `sigmas` [steps + 1].

    `model` is the host's, around a FrameGuider; so are the other arguments.
    """
    options = extra_args["model_options"]
    guider, length = model.inner_model, options["context_handler"].context_length
    lanes = lanes_of(options, guider.conds.values())
    alone = len(lanes) == 1 and not is_elsewhere(options)
    if alone or x.shape[0] <= length or guider.sees_whole_clip(options):
        return comfy.k_diffusion.sampling.sample_euler(model, x, sigmas, extra_args, callback, disable)
    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:
        work = Wavefront(model, x, sigmas, extra_args, reporter(sigmas, callback, bar))
        run_calls(lanes, work, options["context_handler"].on_lanes)
    return work.clip


def reporter(sigmas, callback, bar):
    """A Wavefront's `report`, which tells the bar and the host's callback, if there is one, of a step."""

    def report(step, before, denoised):
        bar.update()
        if callback is not None:
            sigma = sigmas[step]
            callback({"x": before, "i": step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

    return report


class Wavefront:
    """The calls of all steps on a clip, first the one from which most calls must follow one after another.

    `report(step, x, denoised)` is called with the whole clips [t, 4, h, w] before a step and denoised in it, once all of its
    frames have taken that step.
    """

    def __init__(self, model, x, sigmas, extra_args, report):
        self.model, self.guider, self.options = model, model.inner_model, extra_args["model_options"]
        self.sigmas, self.mask, self.report = sigmas, extra_args.get("denoise_mask"), report
        self.total = x.shape[0]
        self.levels = [0] * self.total  # steps that each frame has taken
        self.first = 0  # the first step that not all frames have taken
        self.states = {0: x}  # the clip before each step, as far as its frames have come
        self.inputs = {0: self._masked(x, 0, range(self.total))}  # the same as the network sees it
        self.denoised: dict[int, torch.Tensor] = {}
        self.steps: dict[int, tuple[WindowStep, WindowCalls]] = {}
        self.begun: set[tuple[int, int, int]] = set()
        self.remaining = self._remaining()

    @property
    def ended(self) -> bool:
        """Have all frames taken all steps?"""
        return self.first == len(self.sigmas) - 1

    @property
    def clip(self) -> torch.Tensor:
        """The clip [t, 4, h, w] after the last step."""
        return self.states[len(self.sigmas) - 1]

    def _remaining(self):
        handler = self.options["context_handler"]

        def steps():
            for index in reversed(range(len(self.sigmas) - 1)):
                level = self._level(index, self.total)
                chained = handler.context_overlap > 0 and not (handler.from_previous_step and index > 0)
                yield handler.step_of(level, self.options, self.total, self.guider.conds_at(level, self.options)), chained

        return remaining_calls(steps())

    def next_call(self) -> NetworkCall | None:
        place = max(self._ready(), key=lambda place: self.remaining[place[0]][place[1:]], default=None)
        return None if place is None else self._call(*place)

    def _ready(self) -> Iterator[tuple[int, int, int]]:
        """Step, window and branch of all calls that may run now, the earliest first."""
        for index in range(self.first, min(max(self.levels) + 1, len(self.sigmas) - 1)):
            step, calls = self._windows_of(index)
            for window, frames in enumerate(step.frames):
                if any(self.levels[frame] != index for frame in frames):  # of a window that is done some have gone on
                    continue
                for branch in step.branches:
                    if (index, window, branch) not in self.begun and calls.ready(step, window, branch):
                        yield index, window, branch

    def _call(self, index, window, branch):
        step, calls = self._windows_of(index)
        self.begun.add((index, window, branch))

        def done():
            if frames := [frame for frame in step.frames[window] if all(step.has(frame, each) for each in step.branches)]:
                self._advance(index, frames)

        return calls.call(step, window, [branch], self.inputs[index], self._level(index, self.total), done=done)

    def _windows_of(self, index):
        if index not in self.steps:
            level = self._level(index, self.total)
            conds = self.guider.conds_at(level, self.options)
            handler = self.options["context_handler"]
            before = self.steps[index - 1][0] if handler.from_previous_step and index > 0 else None
            calls = WindowCalls(handler, comfy.samplers.calc_cond_batch, self.guider.inner_model, conds, before)
            self.steps[index] = handler.step_of(level, self.options, self.total, conds), calls
        return self.steps[index]

    def _level(self, index, frames):
        return self.sigmas[index] * self.states[self.first].new_ones(frames)

    def _advance(self, index, frames):
        """These frames, of which all predictions are in, take their step."""
        step, _ = self.steps[index]
        x, seen, sigma = self.states[index][frames], self.inputs[index][frames], self.sigmas[index]
        made = [step.mean(frames, branch) for branch in step.branches]
        if len(made) == 1:  # an unguided step
            made.append(torch.zeros_like(seen))
        denoised = self.guider.mixed(frames, seen, self._level(index, len(frames)), made, self.options)
        if self.mask is not None:
            denoised = denoised * self.mask[frames] + self.model.latent_image[frames] * (1.0 - self.mask[frames])
        after = x + (x - denoised) / sigma * (self.sigmas[index + 1] - sigma)
        _write(self.denoised, index, frames, denoised, self.total)
        _write(self.states, index + 1, frames, after, self.total)
        if index + 2 < len(self.sigmas):
            _write(self.inputs, index + 1, frames, self._masked(after, index + 1, frames), self.total)
        for frame in frames:
            self.levels[frame] = index + 1
        while self.first < min(self.levels):
            if self.first + 2 < len(self.sigmas):
                self._windows_of(self.first + 1)  # before this step is forgotten, which may hand over images
            self.report(self.first, self.states.pop(self.first), self.denoised.pop(self.first))
            del self.inputs[self.first], self.steps[self.first]
            self.first += 1

    def _masked(self, x, index, frames):
        """Frames of the clip as the network sees them: where a mask keeps the latent that was given, that with noise."""
        if self.mask is None:
            return x
        frames = list(frames)
        mask = self.mask[frames]
        kept = self.guider.inner_model.scale_latent_inpaint(
            x=x, sigma=self.sigmas[index] * x.new_ones(len(frames)), noise=self.model.noise[frames],
            latent_image=self.model.latent_image[frames])
        return x * mask + kept * (1.0 - mask)


def _write(clips, index, frames, values, total):
    """Puts frames into the clip of a step, which is made with the first of them."""
    if index not in clips:
        clips[index] = values.new_zeros(total, *values.shape[1:])
    clips[index][frames] = values
