"""Several takes of a clip in one run of the host's, on several devices: each fills what the others leave idle."""

import copy
from collections.abc import Callable

import comfy.model_management as management
import comfy.patcher_extension
import comfy.samplers
import torch
from tqdm.auto import tqdm

from .lanes import ELSEWHERE, NetworkCall, lanes_of, run_calls
from .takes import Take, noise_of
from .wavefront import Wavefront, host_sampler, reporter
from .windows import ClipWindows

BEGUN = 2  # takes in work for each device at most: more would only hold memory
KINDS = comfy.patcher_extension.WrappersMP


class TakesSampler(comfy.samplers.Sampler):
    """Makes all takes where calls of them may run at the same time, else the first one alone, as the sampler `alone` does.

    The host is given the first take, and calls the sampler `name` (one of the wavefront's) with it. `progress` is told of the
    others, which start from the same latent. The result holds the takes that were made, one after another.
    """

    def __init__(self, name: str, alone: comfy.samplers.Sampler, takes: list[Take], progress):
        self.name, self.alone, self.takes, self.progress = name, alone, takes, progress

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        options = extra_args["model_options"]
        lanes = lanes_of(options, guider.conds.values())
        handler = options.get("context_handler", ClipWindows(len(noise), 0, False, False))  # without windows: all frames in one
        if len(lanes) == 1 or not isinstance(handler, ClipWindows) or _watched(options) or guider.sees_whole_clip(options):
            return self.alone.sample(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
        before = len(self.progress.done) - len(self.takes)
        with tqdm(total=len(self.takes) * (len(sigmas) - 1), disable=disable_pbar) as bar:

            def begin(index):
                """The run of a take, which the host prepares for the network as for its own samplers."""
                place, run = before + index, []

                def keep(model, x, sigmas, extra_args, callback, disable):
                    run.append(Wavefront(model, x, sigmas, extra_args, reporter(sigmas, callback, bar)))
                    return x

                own = copy.copy(handler)
                own.on_window = lambda *window: self.progress.shown == place and handler.on_window(*window)
                take = self.takes[index]
                host_sampler(keep, self.name).sample(
                    guider, sigmas, {**extra_args, "model_options": {**options, "context_handler": own}, "seed": take.seed},
                    self.progress.callback(place), noise_of(take).to(noise), latent_image, denoise_mask, True)
                return run[0]

            def end(index, clip):
                self.progress.finish(before + index)
                clip = guider.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], clip)
                return clip.to(management.intermediate_device())

            work = TakesWork(len(self.takes), BEGUN * len(lanes), begin, end)
            run_calls(lanes, work, handler.on_lanes)
        return torch.cat([work.made[index] for index in range(len(self.takes))])


def _watched(options) -> bool:
    """Is there a wrapper around the run, which expects that of one take? Not that of calls elsewhere."""
    wrappers = options["transformer_options"].get("wrappers", {})
    return any(
        added and key != ELSEWHERE
        for kind in (KINDS.OUTER_SAMPLE, KINDS.SAMPLER_SAMPLE) for key, added in wrappers.get(kind, {}).items()
    )


class TakesWork:
    """The calls of all takes, of the take that is furthest behind first, so that they end at about the same time.

    At most `most` takes are in work. `begin(index)` makes the run of a take, `end(index, clip)` what remains of it in `made`.
    """

    def __init__(self, takes: int, most: int, begin: Callable[[int], Wavefront], end: Callable[[int, torch.Tensor], torch.Tensor]):
        self.takes, self.most, self.begin, self.end = takes, most, begin, end
        self.running: dict[int, Wavefront] = {}
        self.made: dict[int, torch.Tensor] = {}

    def next_call(self) -> NetworkCall | None:
        while True:
            for index, run in list(self.running.items()):
                if run.ended:
                    self.made[index] = self.end(index, self.running.pop(index).clip)
            index = len(self.running) + len(self.made)
            if index == self.takes or len(self.running) == self.most:
                break
            self.running[index] = self.begin(index)
        calls = (run.next_call() for run in sorted(self.running.values(), key=lambda run: len(run.begun)))
        return next((call for call in calls if call is not None), None)
