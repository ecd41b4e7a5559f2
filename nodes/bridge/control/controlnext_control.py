"""SVD's ControlNeXt as a CONTROL_NET of the host: loading it, and joining its feature to the UNet's down path."""

from dataclasses import dataclass

import comfy.utils
import torch

from ....unet import ControlNeXt, open_controlnext, residual_shapes
from ....unet.controlnext import join
from ..model.memory_budget import BUDGETS, Retry
from .frame_control import WeighsItself
from .own_controlnet import OwnControlNet
from .pairing import WrongModelError, check_video, levels_of

AFTER_SKIP = "input_block_patch_after_skip"  # both hosts' UNet and ours let it replace an input block's result
UNCONDITIONED = 1  # in the host's `cond_or_uncond`


def load_controlnext(path: str) -> "ControlNeXtControl":
    """The ControlNeXt in the file `path`, under the host's device management; raises UNetFileError."""
    return ControlNeXtControl.load(ControlNeXt, open_controlnext(path))


@dataclass(eq=False)
class JoinFeature:
    """A patch of one call of the UNet: the frames' feature joins the result of one input block.

    `gains`: those of a conditioned and of an unconditioned video of the batch; `weights` as in `WeighsItself`.
    """

    block: int
    feature: torch.Tensor  # [t or 1, c, h', w']
    gains: tuple[float, float]
    weights: torch.Tensor | None
    size: tuple[int, int]  # of that result: height and width

    def __call__(self, h: torch.Tensor, transformer_options: dict) -> torch.Tensor:
        if transformer_options["block"] != ("input", self.block):
            return h
        feature, found = self.feature.to(h), self.weights_at(h, h.shape[-2:])
        weights = 1.0 if found is None else found
        videos = h.chunk(len(transformer_options["cond_or_uncond"]))
        gains = self.gains_of(transformer_options["cond_or_uncond"])
        return torch.cat([
            join(video, feature, gain * weights) if gain else video for video, gain in zip(videos, gains, strict=True)
        ])

    def weights_at(self, like: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor | None:
        """The frames' weights [t or 1, 1, *size] (or [t, 1, 1, 1]) in the dtype of `like`, on its device."""
        if self.weights is None:
            return None
        weights = self.weights.to(like)
        if weights.shape[-2:] == (1, 1):
            return weights
        return comfy.utils.common_upscale(weights, size[1], size[0], "bilinear", "disabled")

    def gains_of(self, kinds: list[int]) -> list[float]:
        """The gain of each video of a batch, by the host's `cond_or_uncond`."""
        return [_gain(self.gains, kind) for kind in kinds]


def _gain(gains, kind):
    conditioned, unconditioned = gains
    return unconditioned if kind == UNCONDITIONED else conditioned


class ControlNeXtControl(WeighsItself, OwnControlNet):
    """One use of a ControlNeXt. It gives no residuals: it leaves a patch in the options of the call that it controls.

    Those options serve that one call, so nothing is left behind by a run, an error or a cancel.
    """

    def __init__(self, control_model=None, **more):
        super().__init__(control_model, **more)
        self.block = None  # the UNet's input block after which the feature joins
        self.levels = None  # of that UNet
        self.retry = Retry()

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        self.retry.begin()
        check_video(model, "ControlNeXt")
        self.levels = levels = levels_of(model)
        net = self.control_model.config
        self.block = net.unet_block(levels)
        expected = levels.input_layout()[self.block].channels
        if net.out_channels != expected:
            raise WrongModelError(
                f"this ControlNeXt makes a feature of {net.out_channels} channels, the model takes {expected} there. Load the "
                f"SVD UNet that was trained with it."
            )

    def act(self, x, t, cond, videos, options):
        gains = tuple(self.strength * gain for gain in self.control_model.gains())
        if not any(_gain(gains, kind) for kind in options["cond_or_uncond"]):
            return None
        image = self._image(x, self.image_indices(x.shape[0] // videos, options))
        timestep = self.model_sampling_current.timestep(t[:1]).float()
        feature = self.retry.attempt_rows(
            image.shape, len(image), self.control_model.row_bytes(image), image.device,
            lambda budget: self.control_model(image, timestep, budget),
        )
        patches = options.get("patches", {})
        size = residual_shapes(self.levels, *x.shape[2:])[self.block][1:]
        ours = JoinFeature(self.block, feature, gains, self.frame_weights, size)
        options["patches"] = {**patches, AFTER_SKIP: [*patches.get(AFTER_SKIP, ()), ours]}
        return None

    def _image(self, x, indices):
        """The control images of these indices [n, 3, 8h, 8w] in 0 to 1; `cond_hint` keeps them until others are asked for."""
        height, width = (side * self.compression_ratio for side in x.shape[2:])
        if not self.has_hint_of(indices) or self.cond_hint.shape[2:] != (height, width):
            image = self.cond_hint_original[indices]
            image = comfy.utils.common_upscale(image, width, height, self.upscale_algorithm, "center")
            self.cond_hint = image.to(device=x.device, dtype=self.compute_dtype)
            self.hint_of = indices
        return self.cond_hint

    def inference_memory_requirements(self, dtype):
        return super().inference_memory_requirements(dtype) + BUDGETS[0]
