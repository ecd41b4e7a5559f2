"""ControlNeXt for Stable Video Diffusion: a small net whose one feature joins the UNet's down path.

Source: Peng et al. 2024 (arXiv 2408.06070) and the authors' code, dvlab-research/ControlNeXt: folders ControlNeXt-SVD-v2 and
ControlNeXt-SVD (v1), files models/controlnext_vid_svd.py and models/unet_spatio_temporal_condition_controlnext.py. Attribute
names are the key names on disk, except v1's learned strength: `strength.scale` here, `scale` there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .chunks import by_rows
from .config import Levels
from .hooks import Hooks
from .layers import timestep_embedding

EMBEDDING_GROUPS = 2  # of every norm in `embedding`
LEVEL_GROUPS = (4, 8, 8)  # of both norms in each of `down_res`
MIDDLE_GROUPS = 8
LEVELS_V1, LEVELS_V2 = 3, 2


@dataclass(frozen=True)
class ControlNeXtConfig:
    """The shape of one net, and with it which of the two published versions it is."""

    image_channels: int
    embedding_widths: tuple[int, int, int]  # of the three first convolutions
    level_widths: tuple[int, ...]  # of the residual blocks, each followed by a downsampling
    out_channels: int  # the UNet's where the feature joins it
    time_channels: int  # of the sinusoids
    emb_channels: int
    learned_strength: bool  # v1: joins before the middle block. Else v2: joins after the UNet's first downsampling

    @property
    def version(self) -> int:
        return 1 if self.learned_strength else 2

    def unet_block(self, levels: Levels) -> int:
        """Index of the input block after which the feature joins a UNet of these levels; it must be `out_channels` wide.

        v2: the first downsampling. v1: the last of the input blocks. The skip of that block stays as it was.
        """
        blocks = levels.input_layout()
        if self.learned_strength:
            return len(blocks) - 1
        return next(index for index, block in enumerate(blocks) if block.resampling == "down")


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, linear on the sinusoids of the timestep."""

    def __init__(self, channels: int, emb_channels: int, *, operations, factory: dict):
        super().__init__()
        self.linear_1 = operations.Linear(channels, emb_channels, **factory)
        self.linear_2 = operations.Linear(emb_channels, emb_channels, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(nn.Module):
    """`layers.ResBlock` under diffusers' names, with diffusers' eps and a number of groups of its own."""

    def __init__(self, channels: int, out_channels: int, emb_channels: int, groups: int, *, operations, factory: dict):
        super().__init__()
        self.norm1 = operations.GroupNorm(groups, channels, eps=1e-6, **factory)
        self.conv1 = operations.Conv2d(channels, out_channels, 3, padding=1, **factory)
        self.time_emb_proj = operations.Linear(emb_channels, out_channels, **factory)
        self.norm2 = operations.GroupNorm(groups, out_channels, eps=1e-6, **factory)
        self.conv2 = operations.Conv2d(out_channels, out_channels, 3, padding=1, **factory)
        self.conv_shortcut = (
            nn.Identity() if channels == out_channels else operations.Conv2d(channels, out_channels, 1, **factory)
        )

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, as diffusers names it."""

    def __init__(self, channels: int, *, operations, factory: dict):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=1, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class LearnedStrength(nn.Module):
    """v1's one number; in a module of its own, since hosts offload parameters by module."""

    def __init__(self, *, factory: dict):
        super().__init__()
        # fp32 whatever the net's dtype: one number, and sigmoid has no fp8 kernel
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float32, device=factory["device"]))


class ControlNeXt(nn.Module):
    """Control images to the one feature that `join` adds to the UNet's activations."""

    def __init__(self, config: ControlNeXtConfig, *, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.config = config
        self.dtype = dtype
        factory = {"dtype": dtype, "device": device}
        layer = {"operations": operations, "factory": factory}
        self.embedding = _embedding(config, operations, factory)
        self.time_embedding = TimestepEmbedding(config.time_channels, config.emb_channels, **layer)
        self.down_res = nn.ModuleList()
        self.down_sample = nn.ModuleList()
        channels = config.embedding_widths[-1]
        for width, groups in zip(config.level_widths, LEVEL_GROUPS, strict=False):  # v2 has no third level
            self.down_res.append(ResnetBlock(channels, width, config.emb_channels, groups, **layer))
            self.down_sample.append(Downsample(width, **layer))
            channels = width
        self.mid_convs = nn.ModuleList([
            nn.Sequential(
                operations.Conv2d(channels, channels, 3, padding=1, **factory), nn.ReLU(),
                operations.GroupNorm(MIDDLE_GROUPS, channels, **factory),
                operations.Conv2d(channels, channels, 3, padding=1, **factory),
                operations.GroupNorm(MIDDLE_GROUPS, channels, **factory),
            ),
            operations.Conv2d(channels, config.out_channels, 1, **factory),
        ])
        self.strength = LearnedStrength(factory=factory) if config.learned_strength else None

    def gains(self) -> tuple[float, float]:
        """The gains for `join` in the conditioned and the unconditioned half, at a strength of 1.

        The authors' pipelines set the strength of the unconditioned half to 0. In v2 that leaves it as it is; in v1, where
        the gain is 1.3 sigmoid(strength), the half keeps 0.65.
        """
        if self.strength is None:
            return 0.2, 0.0
        return 1.3 * torch.sigmoid(self.strength.scale).item(), 1.3 * 0.5

    def forward(self, image: torch.Tensor, timesteps: torch.Tensor, budget: int | None = None) -> torch.Tensor:
        """Control images [n, image_channels, 8h, 8w] in 0 to 1, timesteps [n] or [1] (SVD's: 0.25 ln sigma), to the feature
        [n, out_channels, about h, about w] (v1: h/4, w/4).

        The images run in chunks that need `budget` bytes at most, as in `chunks.by_rows`.
        """
        emb = timestep_embedding(timesteps.reshape(-1), self.config.time_channels).to(image.dtype)
        emb = self.time_embedding(emb).expand(image.shape[0], -1)
        return by_rows(self._rows, budget, self.row_bytes(image), image, emb)

    def row_bytes(self, image: torch.Tensor) -> int:
        """Working memory in bytes that each of the control images [n, c, 8h, 8w] needs: input, output and two in between."""
        halved = image.shape[-2] * image.shape[-1] // 4
        return 4 * self.config.embedding_widths[-1] * halved * image.element_size()

    def _rows(self, image, emb):
        h = self.embedding(image)
        for res, downsample in zip(self.down_res, self.down_sample, strict=True):
            h = downsample(res(h, emb))
        h = h + self.mid_convs[0](h)
        return self.mid_convs[1](h)


def _embedding(config, operations, factory) -> nn.Sequential:
    first, second, third = config.embedding_widths
    layers = [
        operations.Conv2d(config.image_channels, first, 3, stride=2, padding=1, **factory),
        operations.GroupNorm(EMBEDDING_GROUPS, first, **factory), nn.ReLU(),
        operations.Conv2d(first, second, 3, **factory),  # without padding, as published
        operations.GroupNorm(EMBEDDING_GROUPS, second, **factory), nn.ReLU(),
        operations.Conv2d(second, third, 3, **factory),
        operations.GroupNorm(EMBEDDING_GROUPS, third, **factory), nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if config.learned_strength else nn.Sequential(*layers)


def join(h: torch.Tensor, feature: torch.Tensor, gain: float | torch.Tensor) -> torch.Tensor:
    """h [n, c, h, w] plus `gain` (one number, or [n or 1, 1, h or 1, w or 1]) times the feature [n or 1, c, h', w'].

    The feature is first brought to each sample's mean and standard deviation of h, and to h's size by averaging.
    """
    return joined(h, standardized(feature, (h.shape[-2], h.shape[-1])), gain)


def standardized(feature: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The feature [n, c, h', w'] with each sample at mean 0 and standard deviation 1, then brought to `size` by averaging."""
    std, mean = torch.std_mean(feature, dim=(1, 2, 3), keepdim=True)
    return F.adaptive_avg_pool2d((feature - mean) / (std + 1e-5), size)


def joined(h: torch.Tensor, feature: torch.Tensor, gain: float | torch.Tensor) -> torch.Tensor:
    """`join` for a feature that is `standardized` at h's size."""
    std, mean = torch.std_mean(h, dim=(1, 2, 3), keepdim=True)
    return h + gain * (feature * std + mean)


@dataclass(frozen=True)
class Joining:
    """A feature that joins the result of one input block of a UNet: what `joined` takes."""

    block: int
    feature: torch.Tensor
    gain: float
    weights: torch.Tensor | None  # of the frames and pixels of h, times the gain


class JoiningHooks(Hooks):
    """Of a call whose one video some features join, one after another."""

    def __init__(self, joining: Sequence[Joining]):
        self.joining = joining
        self.block = ("", 0)

    def enter_block(self, kind, index):
        self.block = kind, index

    def after_skip(self, h):
        for one in self.joining:
            if self.block == ("input", one.block) and one.gain:
                h = joined(h, one.feature.to(h), one.gain if one.weights is None else one.gain * one.weights.to(h))
        return h
