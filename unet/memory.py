"""How much memory the activations of one call need, estimated from the config alone."""

from dataclasses import dataclass
from math import prod

from . import costs
from .config import BlockLayout, Levels, UNetConfig, level_size
from .inner_features import STRIDE
from .residuals import residual_shapes


def activation_bytes(
    config: UNetConfig, frames: int, height: int, width: int, item: int, budget: int | None
) -> int:
    """Peak bytes of the activations of one video of `frames` frames of height x width latent pixels.

    `item` is the bytes of one value, `budget` as in `UNetModel.forward`. Weights and a whole attention matrix, which fused
    kernels never make, are not counted. Never below what is counted, and at most 10 % above it (tests/unet/test_memory.py).
    """
    call = _Call(config, frames, _channel_bytes(config, frames, height, width, item), budget)
    peaks, skips = _down_path(call)
    for depth, block in zip(config.depth_out, config.output_layout(), strict=True):
        skips.pop()
        joined, out = call.bytes(block.in_channels, block.level), call.bytes(block.channels, block.level)
        joining = 2 * joined if budget is None else 0  # both inputs and the whole; with a budget in the block's chunks
        peaks.append(sum(skips) + max(joining, call.block(block, joined, depth, joins=budget is not None)))
        if block.resampling == "up":
            upsampled = call.bytes(block.channels, block.level - 1)
            peaks.append(sum(skips) + out + upsampled + call.working(costs.UPSAMPLE * upsampled))
    return max(peaks) + _embedding_bytes(config, frames, item)


def encoder_bytes(config: UNetConfig, frames: int, height: int, width: int, item: int, budget: int | None) -> int:
    """Peak bytes of the activations of a ControlNet, which is the down path; arguments as in `activation_bytes`.

    Its residuals stay in memory, as a UNet's skips do.
    """
    call = _Call(config, frames, _channel_bytes(config, frames, height, width, item), budget)
    peaks, _ = _down_path(call)
    return max(peaks) + _embedding_bytes(config, frames, item)


def residual_bytes(levels: Levels, frames: int, height: int, width: int, item: int) -> int:
    """Bytes of the residuals that a ControlNet gives for one video."""
    return frames * item * sum(map(prod, residual_shapes(levels, height, width)))


def feature_bytes(config: UNetConfig, frames: int, height: int, width: int, item: int, depth: int) -> int:
    """Most bytes that an `InnerFeature` keeps of one video, where `depth` blocks at each end of the network are always computed."""
    entered, left = config.input_layout()[depth - 1], config.output_layout()[len(config.depth_out) - depth - 1]
    left_at = left.level - (left.resampling == "up")
    thinned = [-(-side // STRIDE) for side in level_size(entered.level, height, width)]
    values = entered.channels * prod(thinned) + 2 * left.channels * prod(level_size(left_at, height, width))
    return frames * item * values


@dataclass(frozen=True)
class _Call:
    """One call of a network: what its blocks need in bytes."""

    config: UNetConfig
    frames: int
    channel_bytes: list[int]  # of one channel of all frames, at each level
    budget: int | None

    def bytes(self, channels: int, level: int) -> int:
        return channels * self.channel_bytes[level]

    def block(self, block: BlockLayout, into: int, depth: int, joins: bool = False) -> int:
        """A residual block whose input takes `into` bytes, which it may join in chunks, and its transformer of this depth."""
        out = self.bytes(block.channels, block.level)
        res = into + out + self.working(costs.res_block(into, out, joins))
        if not depth:
            return res
        # attention over time sees the context of the first frame, again at every pixel
        context = self.channel_bytes[block.level] // self.frames * (self.config.context_dim or 0)
        return max(res, 3 * out + self.working(costs.TRANSFORMER * out + context))

    def working(self, whole: int) -> int:
        """What a layer needs that would need `whole` bytes at once, and runs in chunks of one frame at least."""
        return whole if self.budget is None else min(whole, max(self.budget, whole // self.frames))


def _channel_bytes(levels, frames, height, width, item):
    return [frames * item * prod(level_size(level, height, width)) for level in range(len(levels.channel_mult))]


def _down_path(call):
    """(peak at each residual block, bytes of each skip)."""
    peaks, skips = [], []
    for block in call.config.input_layout():
        if block.residual is not None:
            peaks.append(sum(skips) + call.block(block, skips[-1], call.config.depth_in[block.residual]))
        skips.append(call.bytes(block.channels, block.level))
    return peaks, skips


def _embedding_bytes(config, frames, item):
    """The embeddings of the timesteps and, at most as wide, of the frame positions."""
    return 2 * frames * config.emb_channels * item
