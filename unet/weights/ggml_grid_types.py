"""ggml's IQ types of 256 numbers: 4 or 8 numbers at once are an index into a grid, with signs and scales of their own.

Each function takes blocks as they are in a file, uint8 [n, bytes], and returns their numbers, fp32 [n, 256]. The layout is that
of `ggml-common.h` and `ggml-quants.c` in ggml (MIT license); the grids are in `ggml_grids.py`.
"""

from functools import cache

import torch
from torch import Tensor

from .ggml_blocks import UNEVEN, half, look_up, nibbles, spread
from .ggml_grids import points

EACH_BIT = tuple(range(8))
SEVENS = (0, 7, 14, 21)
DELTA = 0.125  # by which the points of IQ1_S and IQ1_M are moved up or down


@cache
def _grid(name: str, device: torch.device) -> Tensor:
    """fp32 [points, 4 or 8]"""
    return torch.tensor(points(name), dtype=torch.float32, device=device)


@cache
def _signs(device: torch.device) -> Tensor:
    """fp32 [256, 8]: -1 where a bit of the index is set, lowest bit first."""
    signs = [[1 - 2 * (byte >> bit & 1) for bit in EACH_BIT] for byte in range(256)]
    return torch.tensor(signs, dtype=torch.float32, device=device)


def _words(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as signed whole numbers of `dtype`; mask what a shift leaves."""
    return data.contiguous().view(dtype)


def _from_grid(name: str, indices: Tensor) -> Tensor:
    """The points at these indices, fp32 [n, numbers]; indices [n, k]."""
    return _grid(name, indices.device).index_select(0, indices.reshape(-1).int()).reshape(len(indices), -1)


def _with_signs(numbers: Tensor, bytes_: Tensor, scales: Tensor) -> Tensor:
    """numbers [n, 256], negative where the bits of `bytes_` [n, 32] are set, times scales [n, groups], group by group."""
    numbers = numbers.reshape(-1, 8) * _signs(numbers.device).index_select(0, bytes_.reshape(-1).int())
    return _times(numbers.reshape(len(bytes_), -1), scales)


def _times(numbers: Tensor, scales: Tensor) -> Tensor:
    return (numbers.reshape(*scales.shape, -1) * scales[..., None]).reshape(len(numbers), -1)


def _even_signs(seven: Tensor) -> Tensor:
    """Bytes of signs out of 7 bits each: the eighth makes the count of negative ones even."""
    odd = seven ^ seven >> 4
    odd = odd ^ odd >> 2
    return seven | ((odd ^ odd >> 1) & 1) << 7


def _bits(words: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """Whole numbers of a few bits, [n, k * len(shifts)], out of words [n, k]."""
    return torch.stack([words >> shift & mask for shift in shifts], dim=2).reshape(len(words), -1)


def iq2_xxs(blocks: Tensor) -> Tensor:
    words = _words(blocks[:, 2:], torch.int32)  # pairs: four indices, then signs and a scale
    indices = blocks[:, 2:].reshape(len(blocks), -1, 8)[..., :4].reshape(len(blocks), -1)
    scales = half(blocks[:, :2]) * (0.5 + (words[:, 1::2] >> 28 & 15)) * 0.25
    return _with_signs(_from_grid("IQ2_XXS", indices), _even_signs(_bits(words[:, 1::2], SEVENS, 127)), scales)


def _sixteenths(blocks: Tensor, scales: Tensor) -> Tensor:
    """The scale of each 16 numbers, [n, 16], of IQ2_XS and IQ2_S."""
    return half(blocks[:, :2]) * (0.5 + nibbles(scales, 1)) * 0.25


def iq2_xs(blocks: Tensor) -> Tensor:
    words = _words(blocks[:, 2:66], torch.int16).int()
    return _with_signs(_from_grid("IQ2_XS", words & 511), _even_signs(words >> 9 & 127), _sixteenths(blocks, blocks[:, 66:]))


def iq2_s(blocks: Tensor) -> Tensor:
    indices = blocks[:, 2:34].int() | spread(blocks[:, 66:74], 1, (0, 2, 4, 6), 3).int() << 8
    return _with_signs(_from_grid("IQ2_S", indices), blocks[:, 34:66], _sixteenths(blocks, blocks[:, 74:]))


def iq3_xxs(blocks: Tensor) -> Tensor:
    words = _words(blocks[:, 66:], torch.int32)
    scales = half(blocks[:, :2]) * (0.5 + (words >> 28 & 15)) * 0.5
    return _with_signs(_from_grid("IQ3_XXS", blocks[:, 2:66]), _even_signs(_bits(words, SEVENS, 127)), scales)


def iq3_s(blocks: Tensor) -> Tensor:
    indices = blocks[:, 2:66].int() | spread(blocks[:, 66:74], 1, EACH_BIT, 1).int() << 8
    scales = half(blocks[:, :2]) * (1 + 2 * nibbles(blocks[:, 106:], 1))
    return _with_signs(_from_grid("IQ3_S", indices), blocks[:, 74:106], scales)


def iq1_s(blocks: Tensor) -> Tensor:
    """Each 32 numbers have a word: high bits of four indices, a scale, and whether they are moved up or down."""
    words = _words(blocks[:, 34:], torch.int16).int()
    high = _bits(words, (0, 3, 6, 9), 7)
    numbers = _from_grid("IQ1_S", blocks[:, 2:34].int() | high << 8).reshape(len(blocks), 8, 32)
    numbers += torch.where(words < 0, -DELTA, DELTA)[..., None]
    return _times(numbers.reshape(len(blocks), -1), half(blocks[:, :2]) * (2 * (words >> 12 & 7) + 1))


def iq1_m(blocks: Tensor) -> Tensor:
    """As IQ1_S, each 8 numbers moved by themselves; the block's scale is in the high four bits of four words."""
    words = _words(blocks[:, 48:], torch.int16).int()
    parts = words >> 12 & 15
    d = parts[:, :1] | parts[:, 1:2] << 4 | parts[:, 2:3] << 8 | parts[:, 3:] << 12
    scales = _bits(words, (0, 3, 6, 9), 7)
    high = nibbles(blocks[:, 32:48], 1).int()
    numbers = _from_grid("IQ1_S", blocks[:, :32].int() | (high & 7) << 8).reshape(len(blocks), 32, 8)
    numbers += torch.where(high & 8 == 0, DELTA, -DELTA)[..., None]
    return _times(numbers.reshape(len(blocks), -1), half(d.short().view(torch.uint8)) * (2 * scales + 1))


def iq4_xs(blocks: Tensor) -> Tensor:
    """The uneven numbers of IQ4_NL; scales of 6 bits, high ones in a word, low ones in four bytes."""
    words = _words(blocks[:, 2:4], torch.int16).int()
    high = torch.cat([words >> 2 * group & 3 for group in range(8)], dim=1)
    scales = half(blocks[:, :2]) * ((nibbles(blocks[:, 4:8], 1) | high << 4) - 32)
    return _times(look_up(nibbles(blocks[:, 8:]), UNEVEN), scales)
