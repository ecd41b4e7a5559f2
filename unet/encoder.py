"""What the UNet and its ControlNets share: the embeddings, the way down and the middle, and how blocks are built."""

import re
from dataclasses import dataclass

import torch
from torch import nn

from .config import UNetConfig
from .hooks import Hooks
from .layers import Downsample, ResBlock, Upsample, VideoResBlock, timestep_embedding
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
    budget: int | None = None  # working memory of one layer in bytes, as in `chunks.by_rows`

    def run(self, layer: nn.Module, x: torch.Tensor, next_skip: torch.Size | None) -> torch.Tensor:
        """One layer on x [b*t, c, h, w], given what its kind takes; upsampling reaches the size of the next skip."""
        if isinstance(layer, VideoResBlock):
            return layer(x, self.emb, self.num_frames, self.image_only, self.budget)
        if isinstance(layer, ResBlock):
            return layer(x, self.emb, self.budget)
        if isinstance(layer, SpatialVideoTransformer):
            return layer(x, self.context, self.hooks, self.num_frames, self.time_context, self.image_only, self.budget)
        if isinstance(layer, SpatialTransformer):
            return layer(x, self.context, self.hooks, self.budget)
        if isinstance(layer, Upsample):
            return layer(x, next_skip[2:], self.budget)
        return layer(x)


class TimestepEmbedSequential(nn.Sequential):
    """One numbered block. Networks run its layers one by one, so that nothing holds on to what a layer took in."""


class Encoder(nn.Module):
    """The embeddings, input blocks and middle block of a network of the family, under the key names that files have."""

    def __init__(self, config: UNetConfig, build: "Builder", dtype: torch.dtype | None):
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.time_embed = build.embedding(config.model_channels)
        if config.takes_y:  # else there is no such attribute, as in the original code
            self.label_emb = build.label_embedding()
        self.input_blocks = nn.ModuleList(build.input_blocks())
        self.middle_block = build.middle_block()

    def begin(
        self, x, timesteps, context, y, c_concat, num_frames, time_context, image_only, hooks: Hooks, budget=None
    ) -> tuple[torch.Tensor, "Step"]:
        """(x with c_concat joined, what the layers need of this call); arguments as in `UNetModel.forward`."""
        x = self._join(x, c_concat)
        rows = x.shape[0]
        num_frames = self._frames(rows, num_frames)
        emb = timestep_embedding(_rows(timesteps.reshape(-1), rows, "timesteps"), self.config.model_channels)
        emb = hooks.embedding(self.time_embed(emb.to(x.dtype)))
        emb = emb + self._label(y, rows, emb) if self.config.takes_y else emb
        context = self._context(context, rows)
        time_context = _rows(time_context, rows, "time_context")
        return x, Step(emb, context, time_context, num_frames, image_only, hooks, budget)

    def _join(self, x, c_concat):
        if c_concat is not None:
            x = torch.cat([x, _rows(c_concat, x.shape[0], "c_concat").to(x.dtype)], dim=1)
        if x.shape[1] != self.config.in_channels:
            self._check_channels(x)
        return x

    def _check_channels(self, x):
        """Raises ValueError where the first convolution does not take so many channels.

        It is asked itself, with one pixel: a patch may have widened its weight since it was built, in place or as it is
        brought to the device.
        """
        try:
            self.input_blocks[0][0](x[:1, :, :1, :1])
        except RuntimeError as error:
            expected = re.search(r"to have (\d+) channels", str(error))
            if expected is None:
                raise
            raise ValueError(
                f"The UNet takes {expected[1]} input channels (latent plus c_concat), found {x.shape[1]}: the latent or its "
                f"image condition is of another kind of model."
            ) from None

    def _frames(self, rows, num_frames):
        num_frames = rows if num_frames is None else num_frames
        if num_frames < 1 or rows % num_frames:
            raise ValueError(f"num_frames {num_frames} does not divide the batch of {rows} rows into whole videos.")
        return num_frames

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


class Builder:
    """Makes the blocks of a network in the order in which they run, keeping account of widths and skips."""

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

    def label_embedding(self) -> nn.Module:
        if self.config.num_classes is not None:
            return self.operations.Embedding(self.config.num_classes, self.config.emb_channels, **self.factory)
        return nn.Sequential(self.embedding(self.config.adm_channels))

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
