"""SVD's ControlNet as a CONTROL_NET of the host: loading it, and running it on the frames of a clip."""

import copy

import comfy.controlnet
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from ... import unet
from ...unet import ControlNetFile, open_controlnet
from .hooks import HostHooks


class SVDControlNet(unet.SVDControlNet):
    """`unet.SVDControlNet` with the host's choice of attention."""

    def forward(self, x, hint, timesteps, context=None, y=None, c_concat=None, num_frames=None):
        call = {"x": x, "timesteps": timesteps, "context": context, "y": y}
        hooks = HostHooks({}, self.config.model_channels, None, call)
        return super().forward(x, hint, timesteps, context, y, c_concat, num_frames, hooks=hooks)


def load_svd_controlnet(path: str) -> "SVDControl":
    """The SVD ControlNet in the file `path`, under the host's device management; raises UNetFileError."""
    opened = open_controlnet(path)
    dtype, compute = _dtypes(opened)
    operations = comfy.ops.pick_operations(dtype, compute)
    net = SVDControlNet(opened.config, operations=operations, dtype=dtype, device="meta")
    net.load_state_dict(opened.state_dict(dtype), assign=True)
    net.requires_grad_(False).eval()
    return SVDControl(net, load_device=management.get_torch_device(), manual_cast_dtype=compute)


def _dtypes(opened: ControlNetFile):
    """(dtype of the weights, dtype to compute in or None for the same) as the host chooses them."""
    dtype = management.unet_dtype(model_params=opened.parameters, weight_dtype=opened.dtype())
    return dtype, management.unet_manual_cast(dtype, management.get_torch_device())


class SVDControl(comfy.controlnet.ControlNet):
    """One use of an SVD ControlNet.

    It sees what the UNet sees (scaled latent, first frame, motion) on the conditioned and the unconditioned half alike, as
    its training and its author's pipeline have it. The control images are embedded once and kept until they change.
    """

    def __init__(self, control_model=None, **more):
        super().__init__(control_model, **more)
        self.upscale_algorithm = "bilinear"

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        if not model.model_config.unet_config.get("use_temporal_attention"):
            raise ValueError(
                f"This ControlNet is for Stable Video Diffusion, the model is {type(model).__name__}. Load an SVD model, or "
                f"a ControlNet that was trained for this one."
            )

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return previous
        dtype = self.manual_cast_dtype or self.control_model.dtype

        def ready(value):
            return comfy.model_base.convert_tensor(value, dtype, x_noisy.device)

        residuals = self.control_model(
            self.model_sampling_current.calculate_input(t, x_noisy).to(dtype),
            self._hint(x_noisy, dtype, batched_number),
            self.model_sampling_current.timestep(t).float(),
            ready(cond.get("crossattn_controlnet", cond["c_crossattn"])),
            ready(cond["y"]),
            ready(cond["c_concat"]),
            num_frames=x_noisy.shape[0] // batched_number,
        )
        return self.control_merge({"output": residuals[:-1], "middle": residuals[-1:], "input": []}, previous, None)

    def _hint(self, x_noisy, dtype, batched_number):
        """The embedded control images [b*t, c, h, w]; `cond_hint` keeps them for one image, or one each of the frames."""
        if self.cond_hint is None or self.cond_hint.shape[2:] != x_noisy.shape[2:]:
            size = x_noisy.shape[-1] * self.compression_ratio, x_noisy.shape[-2] * self.compression_ratio
            image = comfy.utils.common_upscale(self.cond_hint_original, *size, self.upscale_algorithm, "center")
            image = (image * 2 - 1).to(device=x_noisy.device, dtype=dtype)
            self.cond_hint = self.control_model.embed_hint(image)
        if self.cond_hint.shape[0] == 1:
            return self.cond_hint.expand(x_noisy.shape[0], -1, -1, -1)
        return self.cond_hint.repeat(batched_number, 1, 1, 1)

    def copy(self):
        other = SVDControl(load_device=self.load_device, manual_cast_dtype=self.manual_cast_dtype)
        other.control_model = self.control_model
        other.control_model_wrapped = self.control_model_wrapped
        self.copy_to(other)
        return other

    def deepclone_multigpu(self, load_device, autoregister=False):
        other = self.copy()
        other.control_model = copy.deepcopy(self.control_model)
        other.control_model_wrapped = comfy.model_patcher.ModelPatcher(
            other.control_model, load_device=load_device, offload_device=management.unet_offload_device()
        )
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other
