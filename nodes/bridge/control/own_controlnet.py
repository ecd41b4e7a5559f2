"""What our uses of a network of ours share: loading it, computing with it, copying it."""

import copy

import comfy.controlnet
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import torch

from ....unet import ControlNetFile, ControlNeXtFile
from ..model.host_operations import with_quick_layers
from ..model.unet_loader import SOURCE
from .own_control import OwnControl


def control_dtypes(opened: ControlNetFile | ControlNeXtFile) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype of the weights, dtype to compute in or None for the same) as the host chooses them for a network of ours."""
    dtype = management.unet_dtype(model_params=opened.parameters, weight_dtype=opened.dtype())
    return dtype, management.unet_manual_cast(dtype, management.get_torch_device())


class OwnControlNet(OwnControl, comfy.controlnet.ControlNet):
    """One use of a network of ours, under the host's device management."""

    def __init__(self, control_model=None, **more):
        super().__init__(control_model, **more)
        self.upscale_algorithm = "bilinear"

    @classmethod
    def load(cls, network: type[torch.nn.Module], opened: ControlNetFile | ControlNeXtFile) -> "OwnControlNet":
        """The network of this class in the open file."""
        dtype, compute = control_dtypes(opened)
        operations = with_quick_layers(comfy.ops.pick_operations(dtype, compute))
        net = network(opened.config, operations=operations, dtype=dtype, device="meta")
        net.load_state_dict(opened.state_dict(dtype), assign=True)
        net.requires_grad_(False).eval()
        control = cls(net, load_device=management.get_torch_device(), manual_cast_dtype=compute)
        control.control_model_wrapped.set_attachments(SOURCE, (opened.path, opened.stamps))
        return control

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.manual_cast_dtype or self.control_model.dtype

    def another(self, device=None):
        other = type(self)(load_device=self.load_device, manual_cast_dtype=self.manual_cast_dtype)
        other.control_model, other.control_model_wrapped = self.control_model, self.control_model_wrapped
        if device is not None:
            other.control_model = copy.deepcopy(self.control_model)
            other.control_model_wrapped = comfy.model_patcher.ModelPatcher(
                other.control_model, load_device=device, offload_device=management.unet_offload_device()
            )
        return other
