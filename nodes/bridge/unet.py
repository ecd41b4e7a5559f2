"""Our UNet under ComfyUI's calling convention: what the host puts into a MODEL as its `diffusion_model`."""

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ... import unet
from ...unet import Residuals
from .hooks import HostHooks


class UNetModel(unet.UNetModel):
    """`unet.UNetModel`, called as the host calls its own (the class's name is one that packs look for)."""

    def __init__(self, config: unet.UNetConfig, *, attn_precision: torch.dtype | None = None, **kwargs):
        super().__init__(config, **kwargs)
        self.attn_precision = attn_precision

    @property
    def in_channels(self):
        return self.config.in_channels

    @property
    def model_channels(self):
        return self.config.model_channels

    def forward(self, x, timesteps=None, context=None, y=None, control=None, transformer_options={}, **kwargs):
        """Runs inside the DIFFUSION_MODEL wrappers of `transformer_options` (EasyCache and others)."""
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        return WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x, timesteps, context, y, control, transformer_options, **kwargs
        )

    def _forward(
        self, x, timesteps, context, y=None, control=None, transformer_options={}, *,
        time_context=None, image_only_indicator=None, num_video_frames=None, **_,
    ):
        call = {"x": x, "timesteps": timesteps, "context": context, "y": y, "image_only_indicator": image_only_indicator}
        return super().forward(
            x, timesteps, context, y,
            num_frames=self._num_frames(x, transformer_options, num_video_frames),
            controls=Residuals(*(control.get(place, ()) for place in ("input", "middle", "output"))) if control else (),
            time_context=time_context,
            image_only=None if image_only_indicator is None else image_only_indicator.flatten(),
            hooks=HostHooks(transformer_options, self.config.model_channels, self.attn_precision, call),
        )

    def _num_frames(self, x, transformer_options, num_video_frames):
        """Frames of each video in the batch: the host's context windows prepend frames that its own count leaves out."""
        if not self.config.temporal:
            return 1
        if "cond_or_uncond" in transformer_options:
            return x.shape[0] // len(transformer_options["cond_or_uncond"])
        return num_video_frames
