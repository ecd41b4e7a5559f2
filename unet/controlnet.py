"""The ControlNet of Stable Video Diffusion, with or without layers over time.

Source: CiaraRowles' svd-temporal-controlnet (diffusers' class ControlNetSDVModel), after Zhang et al. 2023 (arXiv 2302.05543);
files are in the layout of hers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .chunks import by_rows
from .config import UNetConfig
from .encoder import Builder, Encoder
from .hooks import Call, Hooks


@dataclass(frozen=True)
class ControlNetConfig:
    """The shape of one ControlNet: the encoder that it shares with its UNet, and the net that reads the control image."""

    encoder: UNetConfig
    hint_channels: int  # of the control image
    hint_widths: tuple[int, ...]  # of the hint net at full size, a half, a quarter, …

    @property
    def temporal(self) -> bool:
        return self.encoder.temporal


class HintNet(nn.Module):
    """A control image [n, hint_channels, 8h, 8w] to what is added after the first convolution [n, channels, h, w]."""

    def __init__(self, hint_channels: int, widths: tuple[int, ...], channels: int, *, operations, factory: dict):
        super().__init__()

        def conv(n_in, n_out, stride=1):
            return operations.Conv2d(n_in, n_out, 3, padding=1, stride=stride, **factory)

        self.conv_in = conv(hint_channels, widths[0])
        self.blocks = nn.ModuleList()
        for narrow, wide in zip(widths, widths[1:], strict=False):
            self.blocks += [conv(narrow, narrow), conv(narrow, wide, stride=2)]
        self.conv_out = conv(widths[-1], channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.conv_in(image))
        for block in self.blocks:
            h = F.silu(block(h))
        return self.conv_out(h)


class SVDControlNet(Encoder):
    """A copy of the UNet's encoder that sees the control images and gives a residual for each skip and the middle."""

    def __init__(self, config: ControlNetConfig, *, operations=nn, dtype: torch.dtype | None = None, device=None):
        factory = {"dtype": dtype, "device": device}
        build = Builder(config.encoder, operations, factory)
        super().__init__(config.encoder, build, dtype)
        self.control_config = config
        if config.temporal:
            _take_diffusers_eps(self.input_blocks)
        width = config.encoder.model_channels
        self.controlnet_cond_embedding = HintNet(
            config.hint_channels, config.hint_widths, width, operations=operations, factory=factory
        )
        self.controlnet_down_blocks = nn.ModuleList(
            operations.Conv2d(block.channels, block.channels, 1, **factory) for block in config.encoder.input_layout()
        )
        middle = config.encoder.level_channels[-1]
        self.controlnet_mid_block = operations.Conv2d(middle, middle, 1, **factory)

    def embed_hint(self, image: torch.Tensor) -> torch.Tensor:
        """Control images [n, hint_channels, 8h, 8w] in -1 to 1 to [n, model_channels, h, w], whatever the step.

        Each image by itself: its bits are then the same with whatever others it is asked for.
        """
        return by_rows(self.controlnet_cond_embedding, 1, 1, image)

    def forward(
        self,
        x: torch.Tensor,
        hint: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        c_concat: torch.Tensor | None = None,
        num_frames: int | None = None,
        *,
        hooks: Hooks | None = None,
        budget: int | None = None,
    ) -> list[torch.Tensor]:
        """The residuals in the order of `UNetModel.forward`'s `controls`: one for each input block, then the middle's.

        `hint` [b*t, model_channels, h, w] is `embed_hint` of the frames' control images; all else, `budget` too, as the UNet
        takes it. A net that takes the latent alone makes no use of `c_concat`.
        """
        hooks = hooks or Hooks()
        c_concat = None if x.shape[1] == self.config.in_channels else c_concat
        x = self.join(x, c_concat)
        call = Call(
            num_frames=self.frames(x.shape[0], num_frames), emb=self.embed(timesteps, y, x, hooks),
            context=self.attended(context, x.shape[0]), hooks=hooks, budget=budget,
        )
        h = x
        residuals = []
        for index, (block, zero_conv) in enumerate(zip(self.input_blocks, self.controlnet_down_blocks, strict=True)):
            hooks.enter_block("input", index)
            for layer in block.children():
                h = hooks.layer(layer, h, call)
            h = h + hint if index == 0 else h
            residuals.append(zero_conv(h))
        hooks.enter_block("middle", 0)
        for layer in self.middle_block.children():  # type: ignore[union-attr]  # every ControlNet has one
            h = hooks.layer(layer, h, call)
        return [*residuals, self.controlnet_mid_block(h)]


def _take_diffusers_eps(input_blocks: nn.ModuleList) -> None:
    """Sets the eps of the norms before an attention to 1e-6, as in diffusers' video blocks, in which these nets were trained."""
    for block in input_blocks:
        res, *attention = block.children()
        if attention:
            for norm in res.modules():
                if isinstance(norm, nn.GroupNorm):
                    norm.eps = 1e-6
