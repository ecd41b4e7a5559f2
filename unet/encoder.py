"""What the UNet and its ControlNets share: the embeddings, the input and middle blocks, and how blocks are built."""

import re

import torch
from torch import nn

from . import layers, transformer
from .config import UNetConfig
from .hooks import Hooks


class TimestepEmbedSequential(nn.Sequential):
    """The layers of one block. `UNetModel.forward` calls them one by one: a call of the block would keep its input in memory."""


class Layers:
    """The classes that blocks are built of; a host may give others by these names, called and built alike."""

    TimestepEmbedSequential: type[nn.Sequential] = TimestepEmbedSequential
    ResBlock: type[nn.Module] = layers.ResBlock
    VideoResBlock: type[nn.Module] = layers.VideoResBlock
    SpatialTransformer: type[nn.Module] = transformer.SpatialTransformer
    SpatialVideoTransformer: type[nn.Module] = transformer.SpatialVideoTransformer
    Downsample: type[nn.Module] = layers.Downsample
    Upsample: type[nn.Module] = layers.Upsample


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

    def join(self, x: torch.Tensor, c_concat: torch.Tensor | None) -> torch.Tensor:
        """x [b*t, c, h, w] with c_concat [b*t, c', h, w] after its channels; raises ValueError where these are too few or many."""
        if c_concat is not None:
            x = torch.cat([x, expand(c_concat, x.shape[0], "c_concat").to(x.dtype)], dim=1)
        if x.shape[1] != self.config.in_channels:
            self._check_channels(x)
        return x

    def _check_channels(self, x):
        """Raises ValueError where the first convolution does not take the channels of x.

        It runs on one pixel to find out: a patch may have widened its weight since it was built, in place or while it is
        cast to the device.
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

    def frames(self, rows: int, num_frames: int | None) -> int:
        """Frames of each video: all rows are one video where None; raises ValueError where the videos are not whole."""
        num_frames = rows if num_frames is None else num_frames
        if num_frames < 1 or rows % num_frames:
            raise ValueError(f"num_frames {num_frames} does not divide the batch of {rows} rows into whole videos.")
        return num_frames

    def embed(self, timesteps: torch.Tensor, y: torch.Tensor | None, x: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        """The embedding [b*t, emb_channels] of timesteps and y, one row for each of x and in its dtype."""
        timesteps = expand(timesteps.reshape(-1), x.shape[0], "timesteps")
        emb = layers.timestep_embedding(timesteps, self.config.model_channels)
        emb = hooks.embedding(self.time_embed(emb.to(x.dtype)))
        return emb + self._label(y, x.shape[0], emb) if self.config.takes_y else emb

    def _label(self, y, rows, emb):
        if y is None:
            width = "class indices" if self.config.num_classes else f"width {self.config.adm_channels}"
            raise ValueError(f"The UNet needs the vector condition y ({width}: size, motion or class), found none.")
        if self.config.num_classes is not None:
            return self.label_emb(expand(y.reshape(-1), rows, "y")).to(emb.dtype)
        if y.shape[-1] != self.config.adm_channels:
            raise ValueError(f"y has width {y.shape[-1]}, this UNet expects {self.config.adm_channels}.")
        return self.label_emb(expand(y, rows, "y").to(emb.dtype))

    def attended(self, context: torch.Tensor | None, rows: int) -> torch.Tensor | None:
        """The context with a row for each of x; None for networks without transformers. Raises ValueError where it does not fit."""
        if self.config.context_dim is None:
            return None
        if context is None or context.shape[-1] != self.config.context_dim:
            found = "none" if context is None else f"width {context.shape[-1]}"
            raise ValueError(
                f"The UNet attends to a context of width {self.config.context_dim}, found {found}: the text or image "
                f"encoder belongs to another kind of model."
            )
        return expand(context, rows, "context")


def expand(value, rows: int, name: str):
    """A tensor (or None) with one row for each of the batch; a single row serves them all. Raises ValueError."""
    if value is None or value.shape[0] == rows:
        return value
    if value.shape[0] != 1:
        raise ValueError(f"{name} has {value.shape[0]} rows, expected 1 or {rows} as x has.")
    return value.expand(rows, *value.shape[1:])


class Builder:
    """Builds the embeddings and blocks of a network, as the config lays them out."""

    def __init__(self, config: UNetConfig, operations, factory: dict, layers: type[Layers] = Layers):
        self.config = config
        self.operations = operations
        self.factory = factory
        self.layers = layers
        self.shared = {"operations": operations, "factory": factory}

    def embedding(self, channels) -> nn.Sequential:
        emb = self.config.emb_channels
        linear = self.operations.Linear
        return nn.Sequential(linear(channels, emb, **self.factory), nn.SiLU(), linear(emb, emb, **self.factory))

    def label_embedding(self) -> nn.Module:
        if self.config.num_classes is not None:
            return self.operations.Embedding(self.config.num_classes, self.config.emb_channels, **self.factory)
        return nn.Sequential(self.embedding(self.config.adm_channels))

    def input_blocks(self):
        """Each input block in turn."""
        config = self.config
        for block in config.input_layout():
            if block.residual is not None:
                yield self._block(block, config.depth_in)
            elif block.resampling == "down":
                yield self.layers.TimestepEmbedSequential(self.layers.Downsample(block.channels, **self.shared))
            else:
                first = self.operations.Conv2d(config.in_channels, block.channels, 3, padding=1, **self.factory)
                yield self.layers.TimestepEmbedSequential(first)

    def middle_block(self) -> nn.Module | None:
        depth = self.config.depth_middle
        if depth is None:
            return None
        channels = self.config.level_channels[-1]
        if depth == 0:
            return self.layers.TimestepEmbedSequential(self._res(channels, channels))
        return self.layers.TimestepEmbedSequential(
            self._res(channels, channels), self._transformer(channels, depth), self._res(channels, channels)
        )

    def output_blocks(self):
        """Each output block in turn."""
        for block in self.config.output_layout():
            made = self._block(block, self.config.depth_out)
            if block.resampling == "up":
                made.append(self.layers.Upsample(block.channels, **self.shared))
            yield made

    def _block(self, block, depths):
        """A residual block, then a transformer if `depths[block.residual]` is not 0."""
        made = self.layers.TimestepEmbedSequential(self._res(block.in_channels, block.channels))
        if depth := depths[block.residual]:
            made.append(self._transformer(block.channels, depth, self.config.self_attention[block.level]))
        return made

    def _res(self, channels, out_channels):
        kind = self.layers.VideoResBlock if self.config.temporal else self.layers.ResBlock
        return kind(channels, self.config.emb_channels, out_channels, **self.shared)

    def _transformer(self, channels, depth, self_attention=True):
        kind = self.layers.SpatialVideoTransformer if self.config.temporal else self.layers.SpatialTransformer
        return kind(
            channels, *self.config.heads(channels), depth, self.config.context_dim,
            linear=self.config.linear_projection, self_attention=self_attention, **self.shared,
        )
