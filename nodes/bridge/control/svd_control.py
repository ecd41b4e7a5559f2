"""SVD's ControlNet as a CONTROL_NET of the host: loading it, and running it on the frames of a clip."""

import copy

import comfy.controlnet
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from .... import unet
from ....unet import encoder_bytes, open_controlnet, residual_bytes
from ....unet.chunks import by_rows
from ....unet.weights.checkpoint import NetworkFile
from ..model.host_hooks import HostHooks
from ..model.memory_budget import Parts, runs_one_by_one
from ..model.trained_length import LONGEST
from .kept_hints import PreparesImages
from .own_control import OwnControl
from .pairing import WrongModelError, check_layout, check_video

HINT_TENSORS = 3  # as large as the control image at the hint net's first width, at once


class SVDControlNet(unet.SVDControlNet):
    """`unet.SVDControlNet` with the host's choice of attention."""

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        self.parts = Parts(config.encoder, encoder_bytes)

    def forward(self, x, hint, timesteps, context=None, y=None, c_concat=None, num_frames=None, budget=None):
        call = {"x": x, "timesteps": timesteps, "context": context, "y": y}
        hooks = HostHooks({}, self.config.model_channels, None, call)
        return super().forward(x, hint, timesteps, context, y, c_concat, num_frames, hooks=hooks, budget=budget)

    def embed_hint(self, image):
        """As many images at a time as memory has room for."""
        bytes_each = HINT_TENSORS * self.hint_width * image[0, 0].numel() * image.element_size()
        return self.parts.attempt_rows(
            ("images", image.shape), len(image), bytes_each, image.device,
            lambda budget: by_rows(super(SVDControlNet, self).embed_hint, budget, bytes_each, image),
        )

    @property
    def hint_width(self):
        return self.controlnet_cond_embedding.conv_in.out_channels


def load_svd_controlnet(path: str) -> "SVDControl":
    """The SVD ControlNet in the file `path`, under the host's device management; raises UNetFileError."""
    opened = open_controlnet(path)
    dtype, compute = control_dtypes(opened)
    operations = comfy.ops.pick_operations(dtype, compute)
    net = SVDControlNet(opened.config, operations=operations, dtype=dtype, device="meta")
    net.load_state_dict(opened.state_dict(dtype), assign=True)
    net.requires_grad_(False).eval()
    return SVDControl(net, load_device=management.get_torch_device(), manual_cast_dtype=compute)


def control_dtypes(opened: NetworkFile) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype of the weights, dtype to compute in or None for the same) as the host chooses them for a network of ours."""
    dtype = management.unet_dtype(model_params=opened.parameters, weight_dtype=opened.dtype())
    return dtype, management.unet_manual_cast(dtype, management.get_torch_device())


class SVDControl(OwnControl, PreparesImages, comfy.controlnet.ControlNet):
    """One use of an SVD ControlNet.

    It sees what the UNet sees (scaled latent, first frame, motion) on the conditioned and the unconditioned half alike, as
    its training and its author's pipeline have it. The control images are embedded once and kept until they change. Large
    clips run one video (half) after the other, within the memory that is free.
    """

    def __init__(self, control_model=None, **more):
        super().__init__(control_model, **more)
        self.upscale_algorithm = "bilinear"

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        self.control_model.parts.begin()
        check_video(model, "ControlNet")
        config, expected = self._config, model.model_config.unet_config["adm_in_channels"]
        check_layout(model, config)
        if config.adm_channels not in (None, expected):
            raise WrongModelError(
                f"this ControlNet takes a motion vector of width {config.adm_channels}, the model one of {expected}. Load the "
                f"SVD UNet that it was trained with."
            )

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return previous
        frames = x_noisy.shape[0] // batched_number
        indices = self.image_indices(frames, transformer_options)
        rows = self._rows(x_noisy, t, cond, self._hint(x_noisy, indices, batched_number))
        if batched_number == 1 or not runs_one_by_one(self._config, rows["x"], frames, encoder_bytes):
            residuals = self._call(rows, frames)
        else:
            videos = zip(*(value.split(frames) for value in rows.values()))
            parts = [self._call(dict(zip(rows, video)), frames) for video in videos]
            residuals = [torch.cat(part) for part in zip(*parts)]
        return self.control_merge({"output": residuals[:-1], "middle": residuals[-1:], "input": []}, previous, None)

    def _rows(self, x_noisy, t, cond, hint):
        """The net's arguments, each with a row for every frame of every video."""
        dtype = self.manual_cast_dtype or self.control_model.dtype

        def ready(value):
            return comfy.model_base.convert_tensor(value, dtype, x_noisy.device)

        return {
            "x": self.model_sampling_current.calculate_input(t, x_noisy).to(dtype),
            "hint": hint,
            "timesteps": self.model_sampling_current.timestep(t).float(),
            "context": ready(cond.get("crossattn_controlnet", cond["c_crossattn"])),
            "y": ready(cond["y"]),
            "c_concat": ready(cond["c_concat"]),
        }

    def _call(self, rows, frames):
        """The residuals in as large parts as memory allows."""
        return self.control_model.parts.run(
            rows["x"], lambda budget: self.control_model(**rows, num_frames=frames, budget=budget)
        )

    @property
    def _config(self):
        return self.control_model.config

    def inference_memory_requirements(self, dtype):
        """What stays while the UNet runs: both halves' residuals and the embedded images.

        Its own activations are gone by then, and are fewer than the UNet's. The host asks before frames and size are known:
        these are taken from the control images, as many as a window has at most (and where one is for all frames). A clip of
        more frames than that which is sampled whole needs more than is told.
        """
        count, _, height, width = self.cond_hint_original.shape
        frames = LONGEST if count == 1 else min(count, LONGEST)
        height, width = height // self.compression_ratio, width // self.compression_ratio
        item = management.dtype_size(self.manual_cast_dtype or self.control_model.dtype)
        hints = min(count, frames) * self._config.model_channels * height * width * item
        residuals = 2 * residual_bytes(self._config, frames, height, width, item)
        return super().inference_memory_requirements(dtype) + hints + residuals

    def prepare(self, images, size, device):
        """The embedded control images [n, model_channels, *size]."""
        height, width = (side * self.compression_ratio for side in size)
        images = comfy.utils.common_upscale(images, width, height, self.upscale_algorithm, "center")
        dtype = self.manual_cast_dtype or self.control_model.dtype
        return self.control_model.embed_hint((images * 2 - 1).to(device=device, dtype=dtype))

    def _hint(self, x_noisy, indices, batched_number):
        """The embedded control images of these indices [b*t, c, h, w]; `cond_hint` keeps them until others are asked for."""
        if not self.has_hint_of(indices) or self.cond_hint.shape[2:] != x_noisy.shape[2:]:
            self.cond_hint = self.prepare(self.cond_hint_original[indices], x_noisy.shape[2:], x_noisy.device)
            self.hint_of = indices
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
