"""ggml's K types: 256 numbers of 2 to 6 bits, in groups of 16 or 32 whose scales are small whole numbers themselves.

Each function takes blocks as they are in a file, uint8 [n, bytes], and returns their numbers, fp32 [n, 256]. The layout is that
of `ggml-common.h` and `ggml-quants.c` in ggml (MIT license): d is a block's scale, a group's is d times its whole number.
"""

import torch
from torch import Tensor

from .ggml_blocks import half, nibbles, spread

EACH_BIT = tuple(range(8))


def _scaled(numbers: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """numbers [n, 256] * scales [n, groups] (- minima [n, groups]), group by group."""
    grouped = numbers.float().reshape(*scales.shape, -1).mul_(scales[..., None])
    if minima is not None:
        grouped -= minima[..., None]
    return grouped.reshape(len(numbers), -1)


def q2_k(blocks: Tensor) -> Tensor:
    both, d, d_min = blocks[:, :16], half(blocks[:, 80:82]), half(blocks[:, 82:])
    numbers = spread(blocks[:, 16:80], 32, (0, 2, 4, 6), 3)
    return _scaled(numbers, d * (both & 15), d_min * (both >> 4))


def q3_k(blocks: Tensor) -> Tensor:
    """Low two bits, and a third whose absence takes off 4; scales of 6 bits, in 8 bytes of low and 4 of high bits."""
    low, high = nibbles(blocks[:, 96:104], 8), spread(blocks[:, 104:108], 4, (0, 2, 4, 6), 3)
    scales = half(blocks[:, 108:]) * ((low | high << 4).view(torch.int8) - 32)
    third = spread(blocks[:, :32], 32, EACH_BIT, 1) << 2
    return _scaled((spread(blocks[:, 32:96], 32, (0, 2, 4, 6), 3) | third).view(torch.int8) - 4, scales)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [n, 8] each, of Q4_K and Q5_K: 6 bits each in 12 bytes; the last four have their high bits in those of the first."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, rest & 15 | first >> 2 & 48], dim=1)
    minima = torch.cat([second & 63, rest >> 4 | second >> 2 & 48], dim=1)
    return half(blocks[:, :2]) * scales, half(blocks[:, 2:4]) * minima


def q4_k(blocks: Tensor) -> Tensor:
    return _scaled(nibbles(blocks[:, 16:], 32), *_scales_and_minima(blocks))


def q5_k(blocks: Tensor) -> Tensor:
    numbers = nibbles(blocks[:, 48:], 32) | spread(blocks[:, 16:48], 32, EACH_BIT, 1) << 4
    return _scaled(numbers, *_scales_and_minima(blocks))


def q6_k(blocks: Tensor) -> Tensor:
    numbers = nibbles(blocks[:, :128], 64) | spread(blocks[:, 128:192], 32, (0, 2, 4, 6), 3) << 4
    return _scaled(numbers.view(torch.int8) - 32, half(blocks[:, 208:]) * blocks[:, 192:208].view(torch.int8))
