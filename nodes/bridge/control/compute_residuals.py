"""Running a ControlNet alone, at one noise level, through the host's own preparation of a sampling step."""

import comfy.model_management as management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from ..node_names import APPLY_RESIDUALS
from ..node_names import COMPUTE_RESIDUALS as NODE
from .frame_control import WeighsItself, nets_of
from .own_control import frames_of


def compute_residuals(model, positive, latent_image: dict, percent: float, seed: int) -> tuple[list[torch.Tensor], float]:
    """(residuals of the control in `positive`, in the order of the original's `controls`; their noise level sigma).

    Each is [frames, c, h, w] on the CPU. `percent` from 0 to 1 of the sampling gives the noise level to which the latent is
    noised. The host loads the models, converts the conditioning and makes windows as in sampling; the UNet itself does not run.
    """
    latent = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
    noise = comfy.sample.prepare_noise(latent, seed, latent_image.get("batch_index"))
    sigma = _sigma(model.get_model_object("model_sampling"), percent)
    step = _ControlStep(latent.shape[0])
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    management.throw_exception_if_processing_interrupted()
    guider.sample(
        noise, latent, step, torch.tensor([sigma, 0.0]), denoise_mask=latent_image.get("noise_mask"), disable_pbar=True,
        seed=seed,
    )
    return step.residuals(), sigma


def refuse_controlnext(control) -> None:
    """Raises ValueError where `control` (or None), or one before it in the chain, acts in another way than by residuals."""
    if any(isinstance(net, WeighsItself) for net in nets_of(control)):
        raise ValueError(
            f"{NODE}: the conditioning already holds a ControlNeXt, which gives no residuals: its effect would be "
            f"lost. Connect the positive from before it, and apply the ControlNeXt next to the residuals in the run."
        )


def _sigma(model_sampling, percent: float) -> float:
    """The noise level at this share of the sampling, within the model's: at 0 and 1 the host gives one outside of them."""
    sigma = float(model_sampling.percent_to_sigma(percent))
    return min(max(sigma, float(model_sampling.sigma_min)), float(model_sampling.sigma_max))


class _ControlStep(comfy.samplers.Sampler):
    """A "sampler" of one step that keeps the residuals meant for the UNet, and leaves the latent as it is.

    Frames that lie in several context windows get the mean.
    """

    def __init__(self, frames: int):
        self.counts = torch.zeros(frames, 1, 1, 1)
        self.sums: list[torch.Tensor] = []
        self.progress = comfy.utils.ProgressBar(frames)

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model = model_wrap.inner_model
        x = model.model_sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        options = {**extra_args["model_options"], "model_function_wrapper": self._keep}
        comfy.samplers.calc_cond_batch(model, [model_wrap.conds["positive"]], x, sigmas[:1].repeat(x.shape[0]), options)
        return latent_image

    def _keep(self, apply_model, call: dict) -> torch.Tensor:
        """Called instead of the UNet, with what the host passes to a "model_function_wrapper"."""
        controls = _controls(call["c"].get("control"))
        frames, _ = frames_of(call["input"].shape[0], call["c"]["transformer_options"])
        if not self.sums:
            self.sums = [control.new_zeros(len(self.counts), *control.shape[1:], device="cpu") for control in controls]
        for total, control in zip(self.sums, controls, strict=True):
            total[frames] += control.cpu()
        self.counts[frames] += 1
        self.progress.update_absolute(int(self.counts.count_nonzero()))
        management.throw_exception_if_processing_interrupted()
        return torch.zeros_like(call["input"])

    def residuals(self) -> list[torch.Tensor]:
        if not self.sums:
            raise ValueError(f"{NODE}: the conditioning is not used at this noise level. Choose another percent.")
        return [total / self.counts.to(total) for total in self.sums]


def _controls(control: dict | None) -> list[torch.Tensor]:
    """The residuals of all skips and of the middle block, in the original's order; raises ValueError where any is missing."""
    places = control or {}
    controls = [*places.get("output", ()), *places.get("middle", ())]
    if not controls or any(c is not None for c in places.get("input", ())) or any(c is None for c in controls):
        raise ValueError(
            f"{NODE}: this control gives no residuals for the UNet's skips and middle block (a T2I-Adapter, a ControlNeXt). "
            f"Connect it to {APPLY_RESIDUALS} instead."
        )
    return controls
