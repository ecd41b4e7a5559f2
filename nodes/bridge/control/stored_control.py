"""Stored residuals as a CONTROL_NET of the host: no network runs, they are added at every step."""

from collections.abc import Sequence

import comfy.model_management as management
import torch

from ....unet import ControlResiduals, residual_shapes
from ..node_names import APPLY_RESIDUALS as NODE
from .frame_weights import indices_for, log_surplus
from .own_control import OwnControl
from .pairing import family_name, levels_of


def as_residuals(value: ControlResiduals | Sequence[torch.Tensor]) -> ControlResiduals:
    """The value of a CONTROL_RESIDUALS input: ours, or another node's plain list of tensors [frames, c, h, w].

    Raises ValueError where it is neither, or where the tensors differ in their number of frames.
    """
    if isinstance(value, ControlResiduals):
        return value
    tensors = isinstance(value, (list, tuple)) and value and all(isinstance(control, torch.Tensor) for control in value)
    if not tensors:
        raise ValueError(
            f"{NODE}: residuals holds no list of tensors, expected what Compute or Load ControlNet Residuals give, or a list of "
            f"tensors: one for each input block of the UNet, then that of its middle block."
        )
    for index, control in enumerate(value):
        if control.ndim != 4 or control.shape[0] != value[0].shape[0]:
            raise ValueError(
                f"{NODE}: residual controls.{index} has shape {list(control.shape)}, expected [frames, channels, height, width] "
                f"with as many frames as controls.0. Correct the node that makes the residuals."
            )
    return ControlResiduals(tuple(value))


class StoredControl(OwnControl):
    """One use of `residuals`, which are only read. Their frames are those of the clip, the first of more; a single one serves all.

    It stands inside a FrameControl, which weighs its residuals.
    """

    def __init__(self, residuals: ControlResiduals, strength: float, percent_range: tuple[float, float]):
        super().__init__()
        self.residuals = residuals
        self.strength = strength
        self.timestep_percent_range = percent_range
        self.release()

    def release(self):
        super().release()
        self.levels = None  # of the UNet
        self.dtype = None  # that the UNet computes in
        self.ready = None  # (frames, videos, device) and what was made for them

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        self.dtype = model.get_dtype_inference()
        made_for = self.residuals.about.get("family")
        if made_for not in (None, family_name(model)):
            raise ValueError(
                f"{NODE}: the residuals were made for {made_for}, the model is {family_name(model)}. Compute them with this model, "
                f"or load the one that they were made for."
            )
        if "channel_mult" not in model.model_config.unet_config:
            raise ValueError(
                f"{NODE}: the residuals are for a UNet, the model is another kind of network. Use one of Stable Diffusion 1, "
                f"2, XL or Stable Video Diffusion."
            )
        self.levels = levels_of(model)
        count, expected = len(self.residuals.controls), len(self._expected(1, 1))
        if count != expected:
            raise ValueError(
                f"{NODE}: found {count} residuals, expected {expected} ({expected - 1} for the input blocks of "
                f"{family_name(model)} and 1 for its middle block). Use residuals that were made for this model."
            )
        self._check([(shape[0],) for shape in self._expected(1, 1)], "channels")

    def act(self, x, t, cond, videos, options):
        frames, total = self.frames_of(x.shape[0] // videos, options)
        if self.ready is None:
            log_surplus(NODE, "frames of residuals", self.residuals.frames, total)
        indices = indices_for(self.residuals.frames, frames)
        wanted = indices, videos, x.shape[2:], x.device
        if self.ready is None or self.ready[0] != wanted:
            self._check(self._expected(*x.shape[2:]), "channels, height and width")
            self.ready = None  # frees the last before the next is made
            self.ready = wanted, [self._rows(control, indices, videos, x.device) for control in self.residuals.controls]
        rows = self.ready[1]
        return {"input": [], "middle": rows[-1:], "output": rows[:-1]}

    def _rows(self, control, indices, videos, device):
        """control [frames, c, h, w] of these frames times the strength, for every video in the batch; a new tensor."""
        control = control if control.shape[0] == 1 else control[indices]
        scaled = (control.to(device, torch.float32) * self.strength).to(self.dtype)
        return scaled.expand(videos * len(indices), -1, -1, -1) if len(scaled) == 1 else scaled.repeat(videos, 1, 1, 1)

    def _expected(self, height, width):
        return residual_shapes(self.levels, height, width)

    def _check(self, expected: list[tuple[int, ...]], what: str):
        """Raises ValueError for the first residual whose shape after the frames does not begin as expected."""
        for index, (control, shape) in enumerate(zip(self.residuals.controls, expected, strict=True)):
            found = tuple(control.shape[1 : 1 + len(shape)])
            if found != shape:
                raise ValueError(
                    f"{NODE}: residual controls.{index} has {what} {list(found)}, expected {list(shape)}. Use residuals that "
                    f"were made for this model at this size."
                )

    def inference_memory_requirements(self, dtype):
        rows = 1 if self.residuals.frames == 1 else 2  # times the frames: the conditioned and the unconditioned half
        ready = rows * management.dtype_size(dtype) * sum(control.numel() for control in self.residuals.controls)
        return super().inference_memory_requirements(dtype) + ready

    def another(self, device=None):
        return StoredControl(self.residuals, self.strength, self.timestep_percent_range)
