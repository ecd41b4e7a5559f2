"""Numbers to the bytes of GGUF's formats: what can be written, block by block.

Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0 scale each 32 numbers by themselves. Source: ggml (MIT license), `ggml-quants.c`; the bytes are
those of its Python package `gguf`. The K and IQ formats look for the best of many scales; they are read, not written.
"""

from collections.abc import Callable

import torch

CHUNK = 2**17  # numbers that are quantized at once: what fits a CPU's cache
BLOCK = 32


def quantize(values: torch.Tensor, kind: str) -> torch.Tensor:
    """The bytes (uint8 [bytes]) of these numbers, in their flat order, in a quantized format of `QUANTIZERS`.

    Raises ValueError where they are no whole blocks.
    """
    if values.numel() % BLOCK:
        raise ValueError(f"{values.numel():,} numbers are no whole blocks of {kind}, which hold {BLOCK}")
    encode, size = QUANTIZERS[kind], BLOCK_BYTES[kind]
    blocks = values.reshape(-1, BLOCK)
    data = torch.empty((len(blocks), size), dtype=torch.uint8)
    step = CHUNK // BLOCK
    for start in range(0, len(blocks), step):
        data[start:start + step] = encode(blocks[start:start + step].float())
    return data.reshape(-1)


def _scale_bytes(scale: torch.Tensor) -> torch.Tensor:
    """The bytes of scales [n, 1] in fp16: [n, 2]."""
    return scale.half().view(torch.uint8)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _nibbles(whole: torch.Tensor) -> torch.Tensor:
    """Pairs of 4-bit numbers (uint8 [n, 32]) in a byte: the first half of a block low, the second high."""
    return (whole[:, :16] & 15) | (whole[:, 16:] << 4)


def _fifth_bits(whole: torch.Tensor) -> torch.Tensor:
    """The highest bits of 5-bit numbers (uint8 [n, 32]) as four bytes, the first number's lowest."""
    bits = (whole >> 4).reshape(-1, 4, 8) << torch.arange(8, dtype=torch.uint8)
    return bits.sum(-1, dtype=torch.uint8)


def _around_zero(blocks: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, whole numbers from 0 to 2·half - 1): the number farthest from zero becomes 0, whichever its sign."""
    farthest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = farthest / -half
    return scale, (blocks * _inverse(scale) + (half + 0.5)).trunc().clamp(0, 2 * half - 1).to(torch.uint8)


def _from_lowest(blocks: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scale, lowest number, whole numbers from 0 to `most`)."""
    lowest = blocks.amin(1, keepdim=True)
    scale = (blocks.amax(1, keepdim=True) - lowest) / most
    return scale, lowest, ((blocks - lowest) * _inverse(scale) + 0.5).trunc().clamp(0, most).to(torch.uint8)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    scale = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * _inverse(scale)
    size = scaled.abs()
    rounded = scaled.sign() * (size.floor() + (2 * (size - size.floor())).floor())  # halves away from zero
    return torch.cat((_scale_bytes(scale), rounded.to(torch.int8).view(torch.uint8)), 1)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    scale, whole = _around_zero(blocks, 8)
    return torch.cat((_scale_bytes(scale), _nibbles(whole)), 1)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    scale, whole = _around_zero(blocks, 16)
    return torch.cat((_scale_bytes(scale), _fifth_bits(whole), _nibbles(whole)), 1)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    scale, lowest, whole = _from_lowest(blocks, 15)
    return torch.cat((_scale_bytes(scale), _scale_bytes(lowest), _nibbles(whole)), 1)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    scale, lowest, whole = _from_lowest(blocks, 31)
    return torch.cat((_scale_bytes(scale), _scale_bytes(lowest), _fifth_bits(whole), _nibbles(whole)), 1)


QUANTIZERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # fp32 [n, 32] to uint8 [n, bytes of a block]
    "Q8_0": _q8_0, "Q5_1": _q5_1, "Q5_0": _q5_0, "Q4_1": _q4_1, "Q4_0": _q4_0,
}
BLOCK_BYTES = {"Q8_0": 34, "Q5_1": 24, "Q5_0": 22, "Q4_1": 20, "Q4_0": 18}
