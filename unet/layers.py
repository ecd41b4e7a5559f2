"""The convolutional layers of the UNet: embeddings, residual blocks in space and time, resampling.

A `Layer` of a block is called as `layer(x, call)` with x [b*t, c, h, w] and the `Call` that all layers of one forward share.
`operations` is the namespace that layers are taken from: `torch.nn`, or a host's own with the same names (Linear, Conv2d,
Conv3d, GroupNorm, LayerNorm, Embedding). `factory` is `{"dtype": …, "device": …}`. Attribute names are the key names on disk.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from . import costs
from .card_kernels import Convolved, blended, convolved, shifted, summed
from .chunks import by_rows, spans
from .doubling import doubled, doubles, doubling_weight
from .group_norm import moments, residual_in_strips
from .hooks import Call, Layer, may_bypass

GROUPS = 32


def timestep_embedding(timesteps: torch.Tensor, dim: int, max_period: float = 10000) -> torch.Tensor:
    """Sinusoidal embedding [n, dim] of timesteps [n]: cosines, then sines, in fp32 (Vaswani et al. 2017; ADM order)."""
    half = dim // 2
    freqs = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    )
    angles = timesteps[:, None].float() * freqs
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class Upsample(Layer, own=True):
    """Nearest-neighbor upsampling to the size of the next skip, or by 2 where there is none, then a 3x3 convolution."""

    def __init__(self, channels: int, *, operations, factory: dict):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: torch.Tensor, call: Call) -> torch.Tensor:
        size = (x.shape[-2] * 2, x.shape[-1] * 2) if call.next_skip is None else call.next_skip[2:]
        row = costs.UPSAMPLE * x.shape[1] * size[0] * size[1] * x.element_size()
        if doubles(self.conv, x, size):
            weight = doubling_weight(self.conv)
            return by_rows(lambda rows: doubled(rows, weight, self.conv.bias), call.budget, row, x)
        return by_rows(lambda rows: self.conv(F.interpolate(rows, size=size, mode="nearest")), call.budget, row, x)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2; odd sizes round up."""

    def __init__(self, channels: int, *, operations, factory: dict):
        super().__init__()
        self.op = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class AlphaBlender(nn.Module):
    """s * spatial + (1 - s) * temporal with a learned s = sigmoid(mix_factor) (Blattmann et al. 2023, eq. 2)."""

    def __init__(self, *, factory: dict):
        super().__init__()
        # fp32 whatever the model's dtype: one number, and sigmoid has no fp8 kernel
        self.mix_factor = nn.Parameter(torch.zeros(1, dtype=torch.float32, device=factory["device"]))

    def forward(self, spatial: torch.Tensor, temporal: torch.Tensor, image_only: torch.Tensor | None) -> torch.Tensor:
        """Both [b*t, …]; rows where `image_only` [b*t] is set keep the spatial branch alone."""
        s = torch.sigmoid(self.mix_factor.to(spatial.device))
        if image_only is not None:
            s = torch.where(image_only.bool(), torch.ones_like(s), s)
            s = s.view(-1, *[1] * (spatial.ndim - 1))
        if spatial.is_cuda and spatial.dtype == temporal.dtype:
            return torch.lerp(temporal, spatial, s.to(spatial.dtype))  # one kernel
        return s.to(spatial.dtype) * spatial + (1 - s).to(spatial.dtype) * temporal

    def plus(self, video: torch.Tensor, change: Convolved) -> torch.Tensor:
        """The blend of a video [b, c, t, h, w] with itself plus a change."""
        out = blended(video, change, self.mix_factor)
        return self(video, summed(video, change), None) if out is None else out


class ResBlock(Layer, own=True):
    """GroupNorm, SiLU, conv; plus the embedding; GroupNorm, SiLU, conv; plus the input (Dhariwal & Nichol 2021)."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, *, operations, factory: dict):
        super().__init__()
        self.out_channels = out_channels
        self.in_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, channels, eps=1e-5, **factory),
            nn.SiLU(inplace=True),
            operations.Conv2d(channels, out_channels, 3, padding=1, **factory),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb_channels, out_channels, **factory))
        self.out_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, out_channels, eps=1e-5, **factory),
            nn.SiLU(inplace=True),
            nn.Identity(),  # dropout in training; keeps the convolution at index 3, as on disk
            operations.Conv2d(out_channels, out_channels, 3, padding=1, **factory),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else operations.Conv2d(channels, out_channels, 1, **factory)
        )

    def forward(self, x: torch.Tensor, call: Call) -> torch.Tensor:
        """x [n, channels, h, w] to [n, out_channels, h, w]; with a budget some images at a time.

        Where the call holds a skip, x lacks its channels: the skip is taken away and joined to as many images as run at a time.
        """
        skip, call.skip = call.skip, None
        rows = (x, call.emb) if skip is None else (x, call.emb, skip)
        into = x.shape[1] if skip is None else x.shape[1] + skip.shape[1]

        def formula(x, emb, skip=None):
            x = x if skip is None else torch.cat([x, skip], dim=1)
            h = shifted(self.out_layers, convolved(self.in_layers, x, call.hooks), self.emb_layers(emb), call.hooks)
            return summed(self.skip_connection(x), h)

        row = costs.res_block(into, self.out_channels, skip is not None) * x.shape[2] * x.shape[3] * x.element_size()
        return by_rows(formula, call.budget, row, *rows)


class TemporalResBlock(nn.Module):
    """The residual block over time: convolutions of 3 frames, GroupNorm statistics over all frames of a video."""

    def __init__(self, channels: int, emb_channels: int, *, operations, factory: dict):
        super().__init__()
        self.in_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, channels, eps=1e-5, **factory),
            nn.SiLU(),
            operations.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), **factory),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb_channels, channels, **factory))
        self.out_layers = nn.Sequential(
            operations.GroupNorm(GROUPS, channels, eps=1e-5, **factory),
            nn.SiLU(),
            nn.Identity(),
            operations.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), **factory),
        )

    def forward(self, x: torch.Tensor, call: Call) -> torch.Tensor:
        """x [b, channels, t, h, w] to its shape."""
        return summed(x, self.change(x, call))

    def change(self, x: torch.Tensor, call: Call) -> Convolved:
        """What `forward` adds to x."""
        return shifted(self.out_layers, convolved(self.in_layers, x, call.hooks), self.emb_layers(call.emb), call.hooks)

    def in_strips(self, x: torch.Tensor, call: Call, budget: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """What `forward` makes of x [b, channels, t, 1, pixels] in `budget` bytes, strip by strip: (pixels, x, result).

        Half of the budget is for the work on a strip, half keeps what fits between the rounds of `residual_in_strips`.
        """
        half = budget // 2
        places = list(spans(x.shape[-1], costs.TIME_STRIP * _bytes(x[..., 0]), half))
        keep = half // _bytes(x[..., places[0]])

        def strips():
            return ((place, x[..., place].contiguous()) for place in places)

        seen = (moments(strip, GROUPS) for _, strip in strips())
        return residual_in_strips(self, seen, strips, x.dtype, call.hooks.affine, self._shift(call, x.dtype), keep)

    def _shift(self, call, dtype):
        emb = call.emb.unflatten(0, (-1, call.num_frames))  # [b, t, emb_channels]
        return self.emb_layers(emb).to(dtype).movedim(1, 2)[..., None, None]


class VideoResBlock(ResBlock, own=True):
    """A residual block in space, then one over time on its result, blended (SVD)."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, *, operations, factory: dict):
        super().__init__(channels, emb_channels, out_channels, operations=operations, factory=factory)
        self.time_stack = TemporalResBlock(out_channels, emb_channels, operations=operations, factory=factory)
        self.time_mixer = AlphaBlender(factory=factory)

    def forward(self, x: torch.Tensor, call: Call) -> torch.Tensor:
        """x [b*t, channels, h, w] to [b*t, out_channels, h, w].

        With a budget the block in space runs by frames, the block over time by pixels.
        """
        x = super().forward(x, call)
        if call.budget is not None and costs.TIME_WHOLE * _bytes(x) > call.budget:
            return self._over_time_in_strips(x, call)
        video = x.unflatten(0, (-1, call.num_frames)).transpose(1, 2)  # [b, c, t, h, w]
        if call.image_only is None and may_bypass(self.time_stack, TemporalResBlock) and may_bypass(self.time_mixer, AlphaBlender):
            return self.time_mixer.plus(video, self.time_stack.change(video, call)).transpose(1, 2).flatten(0, 1)
        video = self.time_stack(video, call)
        return self.time_mixer(x, video.transpose(1, 2).flatten(0, 1), call.image_only)

    def _over_time_in_strips(self, x, call):
        """Blends x with what the block over time makes of it, in place."""
        pixels = x.view(*x.shape[:2], 1, -1)
        video = pixels.unflatten(0, (-1, call.num_frames)).transpose(1, 2)  # [b, c, t, 1, h*w]
        for strip, _, mixed in self.time_stack.in_strips(video, call, call.budget):
            own = pixels[..., strip]
            own.copy_(self.time_mixer(own, mixed.transpose(1, 2).flatten(0, 1), call.image_only))
        return x


def _bytes(x):
    """x.nbytes, which has no value while compiling for any size."""
    return x.numel() * x.element_size()
