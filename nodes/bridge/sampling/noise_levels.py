"""The noise levels (sigmas) of a run: those of a schedule with a name, or levels that another node gives."""

import logging

import comfy.samplers
import torch

from ..node_names import SVD_SAMPLER as NODE

ALIGN_YOUR_STEPS = "align_your_steps"
FAR = 0.5  # of the highest level of the model: noise that starts below it does not cover an empty latent


def schedulers() -> list[str]:
    """The host's own, as other packs leave them, and Align Your Steps."""
    return [*comfy.samplers.KSampler.SCHEDULERS, ALIGN_YOUR_STEPS]


def scheduled(model, steps: int, sampler_name: str, scheduler: str, denoise: float) -> torch.Tensor:
    """Levels [steps + 1] that fall to 0; none where denoise is 0. With Align Your Steps about steps * denoise of them.

    Align Your Steps: the levels that NVIDIA found for Stable Video Diffusion (Sabour et al. 2024, arXiv 2404.14507), as the
    host's AlignYourStepsScheduler spreads them over other counts of steps.
    """
    if scheduler == ALIGN_YOUR_STEPS:
        from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler  # when needed: not all hosts start with the extras

        levels = AlignYourStepsScheduler.execute("SVD", steps, denoise).result[0]
        _warn_of_scheduled(levels, model, steps, denoise)
        return levels
    return comfy.samplers.KSampler(
        model, steps=steps, device=model.load_device, sampler=sampler_name, scheduler=scheduler, denoise=denoise,
        model_options=model.model_options,
    ).sigmas


def given(sigmas, model, latent: torch.Tensor) -> torch.Tensor:
    """The levels that another node gives, in fp32; the log says what they replace, and where they look like another model's.

    Raises ValueError where they are no levels, or rise.
    """
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1:
        found = f"of shape {list(sigmas.shape)}" if isinstance(sigmas, torch.Tensor) else f"a {type(sigmas).__name__}"
        raise ValueError(f"{NODE}: sigmas is {found}, expected one row of noise levels. Connect a scheduler node.")
    sigmas = sigmas.float()
    if not torch.isfinite(sigmas).all() or (sigmas < 0).any():
        raise ValueError(f"{NODE}: sigmas holds {_listed(sigmas)}; expected levels from 0 up, none of them NaN or infinite.")
    if (sigmas[1:] > sigmas[:-1]).any():
        raise ValueError(
            f"{NODE}: sigmas rises: {_listed(sigmas)}. Expected levels that fall; to turn a clip back into noise use SamplerCustom."
        )
    if (sigmas[:-1] == 0).any():
        raise ValueError(f"{NODE}: sigmas reaches 0 before its end: {_listed(sigmas)}. Expected 0 in the last place alone.")
    logging.info(
        "%s: sigmas is connected: its %d steps count; steps, scheduler and denoise do not.", NODE, max(0, len(sigmas) - 1)
    )
    if len(sigmas) == 1 and sigmas[0] > 0:
        logging.warning("%s: sigmas is one level, so there is no step: the latent only gets noise.", NODE)
    highest = _highest(model)
    if len(sigmas) and float(sigmas[0]) < FAR * highest and not latent.any():
        logging.warning(
            "%s: sigmas starts at %.4g, but the latent is empty and this model's noise starts at %.4g: the levels are probably "
            "another model's, or the second part of a schedule.", NODE, float(sigmas[0]), highest,
        )
    return sigmas


def _highest(model):
    return float(model.get_model_object("model_sampling").sigma_max)


def _warn_of_scheduled(levels, model, steps, denoise):
    """Of Align Your Steps, which knows neither the model nor parts of a step."""
    if denoise > 0 and len(levels) < 2:
        logging.warning("%s: denoise %.4g of %d steps is less than half a step: the latent stays as it is.", NODE, denoise, steps)
    elif denoise == 1 and not FAR < float(levels[0]) / _highest(model) < 1 / FAR:
        logging.warning(
            "%s: align_your_steps starts at noise of %.4g, this model at %.4g. Choose another scheduler.",
            NODE, float(levels[0]), _highest(model),
        )


def _listed(sigmas):
    shown = ", ".join(f"{level:.4g}" for level in sigmas[:6].tolist())
    return shown + (", …" if len(sigmas) > 6 else "")
