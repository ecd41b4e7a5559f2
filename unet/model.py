"""The UNet of Stable Diffusion 1, 2, XL and Stable Video Diffusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .config import UNetConfig
from .hooks import Hooks
from .layers import GROUPS, Downsample, ResBlock, Upsample, VideoResBlock, timestep_embedding
from .residuals import Residuals
from .transformer import SpatialTransformer, SpatialVideoTransformer


@dataclass
class Step:
    """What every layer of one forward call may need besides its activations."""

    emb: torch.Tensor  # [b*t, emb_channels]
    context: torch.Tensor | None  # [b*t, keys, context_dim]
    time_context: torch.Tensor | None  # the same for the layers over time; None = context
    num_frames: int
    image_only: torch.Tensor | None  # [b*t], set where a row is a still image
    hooks: Hooks

    def run(self, layer: nn.Module, x: torch.Tensor, next_skip: torch.Size | None) -> torch.Tensor:
        """One layer on x [b*t, c, h, w], given what its kind takes; upsampling reaches the size of the next skip."""
        if isinstance(layer, VideoResBlock):
            return layer(x, self.emb, self.num_frames, self.image_only)
        if isinstance(layer, ResBlock):
            return layer(x, self.emb)
        if isinstance(layer, SpatialVideoTransformer):
            return layer(x, self.context, self.hooks, self.num_frames, self.time_context, self.image_only)
        if isinstance(layer, SpatialTransformer):
            return layer(x, self.context, self.hooks)
        if isinstance(layer, Upsample):
            return layer(x, next_skip[2:])
        return layer(x)


class TimestepEmbedSequential(nn.Sequential):
    """One numbered block: its layers in order, each given its part of the step."""

    def forward(self, x: torch.Tensor, step: Step, next_skip: torch.Size | None = None) -> torch.Tensor:
        for layer in self:
            x = step.hooks.layer(layer, x, step, next_skip)
        return x


class UNetModel(nn.Module):
    """The whole network, built as `config` says, with the key names that files have on disk.

    Sources: Rombach et al. 2022 (arXiv 2112.10752), Podell et al. 2023 (2307.01952), Blattmann et al. 2023
    (2311.15127); the layout is that of Stability's generative-models and of stable-diffusion.cpp's `unet.hpp`.
    """

    def __init__(self, config: UNetConfig, *, operations=nn, dtype: torch.dtype | None = None, device=None):
        super().__init__()
        self.config = config
        self.dtype = dtype
        factory = {"dtype": dtype, "device": device}
        build = _Builder(config, operations, factory)

        self.time_embed = build.embedding(config.model_channels)
        self.label_emb = build.label_embedding()
        self.input_blocks = nn.ModuleList(build.input_blocks())
        self.middle_block = build.middle_block()
        self.output_blocks = nn.ModuleList(build.output_blocks())
        self.out = nn.Sequential(
            operations.GroupNorm(GROUPS, config.model_channels, eps=1e-5, **factory),
            nn.SiLU(),
            operations.Conv2d(config.model_channels, config.out_channels, 3, padding=1, **factory),
        )

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        c_concat: torch.Tensor | None = None,
        num_frames: int | None = None,
        controls: Sequence[torch.Tensor] | Residuals = (),
        control_strength: float = 1.0,
        *,
        time_context: torch.Tensor | None = None,
        image_only: torch.Tensor | None = None,
        hooks: Hooks | None = None,
    ) -> torch.Tensor:
        """The network's prediction [b*t, out_channels, h, w].

        x [b*t, c, h, w] (b videos of `num_frames` frames, all of one video after another; None = one video), of any h
        and w; timesteps [b*t] or [1]; context [b*t, keys, context_dim]; y [b*t, adm_channels], or [b*t] class
        numbers; c_concat [b*t, c', h, w] is joined to x's channels. One row of timesteps, context, c_concat or y serves
        the whole batch. `controls`: residuals in the order of the input blocks, then the middle's, each times
        `control_strength`; they are only read. Raises ValueError where shapes do not fit the network.
        """
        hooks = hooks or Hooks()
        x = self._join(x, c_concat)
        rows = x.shape[0]
        num_frames = self._frames(rows, num_frames)
        residuals = self._residuals(controls, control_strength)

        emb = timestep_embedding(_rows(timesteps.reshape(-1), rows, "timesteps"), self.config.model_channels)
        emb = hooks.embedding(self.time_embed(emb.to(x.dtype)))
        emb = emb + self._label(y, rows, emb) if self.label_emb is not None else emb
        context = self._context(context, rows)
        step = Step(emb, context, _rows(time_context, rows, "time_context"), num_frames, image_only, hooks)

        h = x
        skips = []
        for index, block in enumerate(self.input_blocks):
            hooks.enter_block("input", index)
            h = block(h, step)
            h = hooks.input_block(residuals.add("input", h))
            skips.append(h)
            h = hooks.after_skip(h)

        hooks.enter_block("middle", 0)
        if self.middle_block is not None:
            h = self.middle_block(h, step)
        h = hooks.middle_block(residuals.add("middle", h), emb)

        for index, block in enumerate(self.output_blocks):
            hooks.enter_block("output", index)
            h, skip = hooks.output_block(h, residuals.add("output", skips.pop()))
            h = h if skip is None else torch.cat([h, skip], dim=1)
            h = block(h, step, next_skip=skips[-1].shape if skips else None)

        return self.out(h.to(x.dtype))

    def _join(self, x, c_concat):
        if c_concat is not None:
            x = torch.cat([x, _rows(c_concat, x.shape[0], "c_concat").to(x.dtype)], dim=1)
        if x.shape[1] != self.config.in_channels:
            raise ValueError(
                f"The UNet takes {self.config.in_channels} input channels (latent plus c_concat), found {x.shape[1]}: "
                f"the latent or its image condition is of another kind of model."
            )
        return x

    def _frames(self, rows, num_frames):
        num_frames = rows if num_frames is None else num_frames
        if num_frames < 1 or rows % num_frames:
            raise ValueError(f"num_frames {num_frames} does not divide the batch of {rows} rows into whole videos.")
        return num_frames

    def _residuals(self, controls, strength):
        if isinstance(controls, Residuals):
            return controls
        return Residuals.from_controls(controls, strength, self.config.num_skips)

    def _label(self, y, rows, emb):
        if y is None:
            width = "class numbers" if self.config.num_classes else f"width {self.config.adm_channels}"
            raise ValueError(f"The UNet needs the vector condition y ({width}: size, motion or class), found none.")
        if self.config.num_classes is not None:
            return self.label_emb(_rows(y.reshape(-1), rows, "y")).to(emb.dtype)
        if y.shape[-1] != self.config.adm_channels:
            raise ValueError(f"y has width {y.shape[-1]}, this UNet expects {self.config.adm_channels}.")
        return self.label_emb(_rows(y, rows, "y").to(emb.dtype))

    def _context(self, context, rows):
        if self.config.context_dim is None:
            return None
        if context is None or context.shape[-1] != self.config.context_dim:
            found = "none" if context is None else f"width {context.shape[-1]}"
            raise ValueError(
                f"The UNet attends to a context of width {self.config.context_dim}, found {found}: the text or image "
                f"encoder belongs to another kind of model."
            )
        return _rows(context, rows, "context")


def _rows(value: torch.Tensor | None, rows: int, name: str) -> torch.Tensor | None:
    """`value` with one row for each of the batch; a single row serves them all."""
    if value is None or value.shape[0] == rows:
        return value
    if value.shape[0] != 1:
        raise ValueError(f"{name} has {value.shape[0]} rows, expected 1 or {rows} as x has.")
    return value.expand(rows, *value.shape[1:])


class _Builder:
    """Makes the blocks of a `UNetModel` in the order in which they run, keeping account of widths and skips."""

    def __init__(self, config: UNetConfig, operations, factory: dict):
        self.config = config
        self.operations = operations
        self.factory = factory
        self.layer = {"operations": operations, "factory": factory}
        self.channels = config.model_channels
        self.skips: list[int] = []

    def embedding(self, channels: int) -> nn.Sequential:
        emb = self.config.emb_channels
        linear = self.operations.Linear
        return nn.Sequential(linear(channels, emb, **self.factory), nn.SiLU(), linear(emb, emb, **self.factory))

    def label_embedding(self) -> nn.Module | None:
        if self.config.num_classes is not None:
            return self.operations.Embedding(self.config.num_classes, self.config.emb_channels, **self.factory)
        if self.config.adm_channels is not None:
            return nn.Sequential(self.embedding(self.config.adm_channels))
        return None

    def input_blocks(self):
        config = self.config
        depths = iter(config.depth_in)
        conv = self.operations.Conv2d(config.in_channels, config.model_channels, 3, padding=1, **self.factory)
        yield self._keep(conv)
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks[level]):
                yield self._keep(*self._res_and_transformer(mult, next(depths), config.self_attention[level]))
            if level < len(config.channel_mult) - 1:
                yield self._keep(Downsample(self.channels, **self.layer))

    def middle_block(self) -> nn.Module | None:
        depth = self.config.depth_middle
        if depth is None:
            return None
        mult = self.config.channel_mult[-1]
        layers = self._res_and_transformer(mult, depth, self_attention=True)
        if depth > 0:
            layers.append(self._res(self.channels))
        return TimestepEmbedSequential(*layers)

    def output_blocks(self):
        config = self.config
        depths = iter(config.depth_out)
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for number in range(config.num_res_blocks[level] + 1):
                self.channels += self.skips.pop()
                layers = self._res_and_transformer(mult, next(depths), config.self_attention[level])
                if level > 0 and number == config.num_res_blocks[level]:
                    layers.append(Upsample(self.channels, **self.layer))
                yield TimestepEmbedSequential(*layers)

    def _keep(self, *layers) -> TimestepEmbedSequential:
        self.skips.append(self.channels)
        return TimestepEmbedSequential(*layers)

    def _res(self, out_channels: int) -> nn.Module:
        kind = VideoResBlock if self.config.temporal else ResBlock
        block = kind(self.channels, self.config.emb_channels, out_channels, **self.layer)
        self.channels = out_channels
        return block

    def _res_and_transformer(self, mult: int, depth: int, self_attention: bool) -> list[nn.Module]:
        config = self.config
        layers = [self._res(mult * config.model_channels)]
        if depth > 0:
            kind = SpatialVideoTransformer if config.temporal else SpatialTransformer
            heads, dim_head = config.heads(self.channels)
            layers.append(
                kind(
                    self.channels, heads, dim_head, depth, config.context_dim,
                    linear=config.linear_projection, self_attention=self_attention, **self.layer,
                )
            )
        return layers
