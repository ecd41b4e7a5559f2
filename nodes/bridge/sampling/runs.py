"""The host's sampling runs for the takes of a clip: one after another, or one for all where several devices may work."""

import comfy.model_management as management
import comfy.samplers
import comfy.utils
import torch

from .guidance import FrameGuider
from .lanes import may_use_lanes
from .preview import prepare_callbacks
from .takes import Take, noise_of
from .takes_sampler import TakesSampler
from .wavefront import SAMPLERS, wavefront_sampler
from .windows import OWN_LEVELS, ClipWindows


def sample(guider: FrameGuider, takes: list[Take], levels: torch.Tensor, sampler_name: str) -> torch.Tensor:
    """The denoised takes [takes * frames, 4, h, w] on the host's intermediate device, with its progress, preview and cancel.

    Each is what a run of its own would make. `levels`: noise levels [steps + 1], from the highest; without any the latents come
    back as they are.
    """
    steps, seeds = max(0, len(levels) - 1), [take.seed for take in takes]
    report, finish = prepare_callbacks(guider.model_patcher, steps, guider.original_conds["positive"][0], seeds)
    progress = TakesProgress(report, steps, len(takes))
    made: list[torch.Tensor] = []
    while left := takes[len(made):]:
        made.extend(_run(guider, left, levels, sampler_name, progress))
    out = made[0] if len(made) == 1 else torch.cat(made)
    finish(out)
    return out


class TakesProgress:
    """Takes as one run: its steps are those of all, and its preview is of the first take that is not done.

    `report(step, x0, x, total_steps, take)` is what `prepare_callbacks` makes.
    """

    def __init__(self, report, steps: int, takes: int):
        self.report, self.steps = report, steps
        self.done = [0] * takes  # steps of each take
        self.shown = 0

    def callback(self, take: int):
        """The host's callback(step, x0, x, total_steps) for a take."""

        def callback(step, x0, x, total_steps):
            self.done[take] = step + 1
            others = sum(min(done, self.steps) for index, done in enumerate(self.done) if index != take)
            self.report(others + step, x0, x, total_steps * len(self.done), take if take == self.shown else None)

        return callback

    def finish(self, take: int) -> None:
        self.done[take] = self.steps
        while self.shown < len(self.done) - 1 and self.done[self.shown] >= self.steps:
            self.shown += 1


def _run(guider, takes, levels, sampler_name, progress):
    """What one run of the host's makes: the first of the takes that are left, or all of these."""
    first, index = takes[0], len(progress.done) - len(takes)
    noise = noise_of(first)
    handler = guider.model_patcher.model_options.get("context_handler")
    if isinstance(handler, ClipWindows):
        handler.begin_run(own_levels=sampler_name in OWN_LEVELS)
    out = guider.sample(
        noise, first.latent["samples"], _sampler(guider.model_patcher, takes, sampler_name, progress), levels,
        denoise_mask=first.latent.get("noise_mask"), callback=progress.callback(index),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=first.seed,
    )
    progress.finish(index)
    return out.to(management.intermediate_device()).split(len(noise))


def _sampler(model, takes, name, progress):
    sampler = comfy.samplers.sampler_object(name)
    if name not in SAMPLERS or not may_use_lanes(model):
        return sampler
    if isinstance(model.model_options.get("context_handler"), ClipWindows):
        sampler = wavefront_sampler(name)
    if len(takes) > 1 and takes[1].latent is takes[0].latent:
        sampler = TakesSampler(name, sampler, takes, progress)
    return sampler
