"""The simple blocks of ggml: one scale for 16 or 32 numbers of 4, 5 or 8 bits, and the ternary ones.

Each function takes blocks as they are in a file, uint8 [n, bytes], and returns their numbers, fp32 [n, numbers]. Letters are
those of ggml's `ggml-common.h` (MIT license): d is a block's scale, m its minimum, qs the small whole numbers.
"""

from functools import cache

import torch
from torch import Tensor

FOUR_BIT_FLOATS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # e2m1, doubled
UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # of IQ4_NL and IQ4_XS
HALF_POWERS = tuple(2.0 ** (exponent - 128) for exponent in range(256))  # of MXFP4, halved as FOUR_BIT_FLOATS are doubled


def half(data: Tensor) -> Tensor:
    """fp16 numbers, uint8 [n, 2k], as fp32 [n, k]."""
    return data.contiguous().view(torch.float16).float()


def spread(data: Tensor, width: int, shifts: tuple[int, ...], mask: int) -> Tensor:
    """Numbers of a few bits out of bytes, [n, k] to [n, k * len(shifts)]: of each `width` bytes first those at the first shift."""
    groups = data.contiguous().reshape(len(data), -1, width)  # shifts of rows with gaps take twice the time
    return torch.stack([(groups >> shift if shift else groups) & mask for shift in shifts], dim=2).reshape(len(data), -1)


def nibbles(data: Tensor, width: int = 16) -> Tensor:
    return spread(data, width, (0, 4), 15)


@cache
def _table(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def look_up(indices: Tensor, values: tuple[float, ...]) -> Tensor:
    """The value that each index stands for, fp32 of the shape of `indices`."""
    return _table(values, indices.device).index_select(0, indices.reshape(-1).int()).reshape(indices.shape)


def q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float().mul_(half(blocks[:, :2]))


def q4_0(blocks: Tensor) -> Tensor:
    return nibbles(blocks[:, 2:]).view(torch.int8).sub_(8).float().mul_(half(blocks[:, :2]))


def q4_1(blocks: Tensor) -> Tensor:
    return nibbles(blocks[:, 4:]).float().mul_(half(blocks[:, :2])).add_(half(blocks[:, 2:4]))


def _fifth_bits(high: Tensor) -> Tensor:
    """The bits of uint8 [n, 4], lowest first, as 0 or 16: uint8 [n, 32]."""
    return spread(high, 1, tuple(range(8)), 1) << 4


def q5_0(blocks: Tensor) -> Tensor:
    numbers = nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return numbers.view(torch.int8).sub_(16).float().mul_(half(blocks[:, :2]))


def q5_1(blocks: Tensor) -> Tensor:
    numbers = nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return numbers.float().mul_(half(blocks[:, :2])).add_(half(blocks[:, 2:4]))


def iq4_nl(blocks: Tensor) -> Tensor:
    return look_up(nibbles(blocks[:, 2:]), UNEVEN) * half(blocks[:, :2])


def tq1_0(blocks: Tensor) -> Tensor:
    """Five ternary digits in a byte, which is their fraction of 243 in units of 1/256: multiplying brings up digit after digit."""
    digits = [
        torch.stack([part * 3**place for place in range(count)], dim=1).reshape(len(blocks), -1)
        for part, count in ((blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4))
    ]  # uint8, so what is above a byte falls away
    numbers = (torch.cat(digits, dim=1).short() * 3) >> 8
    return (numbers - 1) * half(blocks[:, 52:])


def tq2_0(blocks: Tensor) -> Tensor:
    return (spread(blocks[:, :64], 32, (0, 2, 4, 6), 3).view(torch.int8) - 1) * half(blocks[:, 64:])


def mxfp4(blocks: Tensor) -> Tensor:
    """4-bit floats under a scale that is a power of two (OCP Microscaling Formats 1.0)."""
    scales = look_up(blocks[:, :1], HALF_POWERS)
    return scales * look_up(nibbles(blocks[:, 1:]), FOUR_BIT_FLOATS)


def _half_e4m3(byte: int) -> float:
    """Half the value of an e4m3 number, since FOUR_BIT_FLOATS are doubled; the sign bit is not looked at."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    if byte == 0x7F:  # not a number
        return 0.0
    return (fraction * 2.0**-9 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)) / 2


HALF_E4M3 = tuple(_half_e4m3(byte) for byte in range(256))


def nvfp4(blocks: Tensor) -> Tensor:
    """4-bit floats, each 16 of them under an unsigned e4m3 scale."""
    scales = look_up(blocks[:, :4], HALF_E4M3)
    numbers = look_up(nibbles(blocks[:, 4:], 8), FOUR_BIT_FLOATS)
    return (scales[..., None] * numbers.reshape(-1, 4, 16)).reshape(-1, 64)
