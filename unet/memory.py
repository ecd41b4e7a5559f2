"""How much memory the activations of one call need, reckoned from the config alone."""

from .config import UNetConfig


def activation_bytes(
    config: UNetConfig, frames: int, height: int, width: int, item: int, budget: int | None
) -> int:
    """Peak bytes of the activations of one video of `frames` frames of height x width latent pixels.

    `item` is the size of a number, `budget` as in `UNetModel.forward`. Weights and a whole attention matrix, which fused
    kernels never make, are not counted. Never under what is counted, and by 10 % over it at most (tests/unet/test_memory.py).
    """
    peaks, skips, last, pixels = _way_down(config, frames, height, width, item, budget)
    depths = iter(config.depth_out)
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        size = mult * config.model_channels * pixels[level]
        for number in range(config.num_res_blocks[level] + 1):
            joined = last + skips.pop()
            block = _block(joined, size, next(depths), _context(config, frames, pixels[level]), frames, budget)
            peaks.append(sum(skips) + max(2 * joined, block))  # joining holds the parts and the whole
            last = size
        if level > 0:
            last = mult * config.model_channels * pixels[level - 1]
            peaks.append(sum(skips) + size + last + _working(2 * last, frames, budget))
    return max(peaks) + _embeddings(config, frames, item)


def encoder_bytes(config: UNetConfig, frames: int, height: int, width: int, item: int, budget: int | None) -> int:
    """The same of a ControlNet, which is the way down; its residuals stay, as a UNet's skips do."""
    return max(_way_down(config, frames, height, width, item, budget)[0]) + _embeddings(config, frames, item)


def residual_bytes(config: UNetConfig, frames: int, height: int, width: int, item: int) -> int:
    """Bytes of the residuals that a ControlNet gives for one video."""
    _, skips, last, _ = _way_down(config, frames, height, width, item, None)
    return sum(skips) + last


def _way_down(config, frames, height, width, item, budget):
    """(peak at each block, bytes of each skip, of what the last block made, of one channel at each level)."""
    pixels = [frames * item * _halved(height, level) * _halved(width, level) for level in range(len(config.channel_mult))]
    skips = [config.model_channels * pixels[0]]
    peaks = []
    last = skips[0]
    depths = iter(config.depth_in)
    for level, mult in enumerate(config.channel_mult):
        size = mult * config.model_channels * pixels[level]
        for _ in range(config.num_res_blocks[level]):
            block = _block(last, size, next(depths), _context(config, frames, pixels[level]), frames, budget)
            peaks.append(sum(skips) + block)
            skips.append(size)
            last = size
        if level < len(config.channel_mult) - 1:
            last = mult * config.model_channels * pixels[level + 1]
            skips.append(last)
    return peaks, skips, last, pixels


def _halved(size: int, times: int) -> int:
    for _ in range(times):
        size = (size + 1) // 2
    return size


def _embeddings(config, frames, item):
    """Bytes of those of the timesteps and, at most as wide, of the frames' places."""
    return 2 * frames * config.emb_channels * item


def _context(config, frames, pixels):
    """Bytes of the context that attention over time sees: the first frame's, again at every pixel."""
    return pixels // frames * (config.context_dim or 0)


def _block(into: int, out: int, depth: int, context: int, frames: int, budget: int | None) -> int:
    """A residual block from `into` to `out` bytes, and its transformer."""
    res = into + out + _working(2 * into + 3 * out, frames, budget)
    return max(res, 3 * out + _working(18 * out + context, frames, budget)) if depth else res


def _working(whole: int, frames: int, budget: int | None) -> int:
    """What a layer takes that would take `whole` bytes at once, and runs by frames: one of them at least."""
    return whole if budget is None else min(whole, max(budget, whole // frames))
