"""The number formats of GGUF files, and their values as PyTorch tensors.

A quantized tensor is a row of blocks; a block holds some numbers (32, 64 or 256) in a few bytes: scales and small whole numbers.
How each is laid out is in `ggml_blocks.py`, `ggml_k_types.py` and `ggml_grid_types.py`. Source of all: ggml (MIT license),
`ggml-common.h` and `ggml-quants.c`; in fp32 the values are those of its Python package `gguf`, bit for bit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import torch

from . import ggml_blocks, ggml_grid_types, ggml_k_types

CHUNK, CHUNK_ON_CPU = 2**23, 2**18  # numbers that are dequantized at once: on a CPU what fits its cache


@dataclass(frozen=True)
class GGMLType:
    """One number format, quantized or plain (then a block is one number, of the dtype `plain`)."""

    name: str
    id: int  # in a file
    block: int  # numbers in one
    bytes: int  # of one
    decode: Callable[[torch.Tensor], torch.Tensor]  # uint8 [n, bytes] to its numbers [n, block], fp32 where it is quantized
    plain: torch.dtype | None = None

    def size(self, numel: int) -> int:
        """The bytes that so many numbers take; raises ValueError where they are no whole blocks."""
        if numel % self.block:
            raise ValueError(f"{numel:,} numbers are no whole blocks of {self.name}, which hold {self.block}")
        return numel // self.block * self.bytes


def _plain(name: str, id: int, dtype: torch.dtype) -> GGMLType:
    return GGMLType(name, id, 1, dtype.itemsize, lambda blocks: blocks.view(dtype), dtype)


TYPES: dict[str, GGMLType] = {row.name: row for row in (
    _plain("F32", 0, torch.float32),
    _plain("F16", 1, torch.float16),
    _plain("BF16", 30, torch.bfloat16),
    _plain("F64", 28, torch.float64),
    _plain("I8", 24, torch.int8),
    _plain("I16", 25, torch.int16),
    _plain("I32", 26, torch.int32),
    _plain("I64", 27, torch.int64),
    GGMLType("Q4_0", 2, 32, 18, ggml_blocks.q4_0),
    GGMLType("Q4_1", 3, 32, 20, ggml_blocks.q4_1),
    GGMLType("Q5_0", 6, 32, 22, ggml_blocks.q5_0),
    GGMLType("Q5_1", 7, 32, 24, ggml_blocks.q5_1),
    GGMLType("Q8_0", 8, 32, 34, ggml_blocks.q8_0),
    GGMLType("TQ1_0", 34, 256, 54, ggml_blocks.tq1_0),
    GGMLType("TQ2_0", 35, 256, 66, ggml_blocks.tq2_0),
    GGMLType("MXFP4", 39, 32, 17, ggml_blocks.mxfp4),
    GGMLType("NVFP4", 40, 64, 36, ggml_blocks.nvfp4),
    GGMLType("Q2_K", 10, 256, 84, ggml_k_types.q2_k),
    GGMLType("Q3_K", 11, 256, 110, ggml_k_types.q3_k),
    GGMLType("Q4_K", 12, 256, 144, ggml_k_types.q4_k),
    GGMLType("Q5_K", 13, 256, 176, ggml_k_types.q5_k),
    GGMLType("Q6_K", 14, 256, 210, ggml_k_types.q6_k),
    GGMLType("IQ1_S", 19, 256, 50, ggml_grid_types.iq1_s),
    GGMLType("IQ1_M", 29, 256, 56, ggml_grid_types.iq1_m),
    GGMLType("IQ2_XXS", 16, 256, 66, ggml_grid_types.iq2_xxs),
    GGMLType("IQ2_XS", 17, 256, 74, ggml_grid_types.iq2_xs),
    GGMLType("IQ2_S", 22, 256, 82, ggml_grid_types.iq2_s),
    GGMLType("IQ3_XXS", 18, 256, 98, ggml_grid_types.iq3_xxs),
    GGMLType("IQ3_S", 21, 256, 110, ggml_grid_types.iq3_s),
    GGMLType("IQ4_NL", 20, 32, 18, ggml_blocks.iq4_nl),
    GGMLType("IQ4_XS", 23, 256, 136, ggml_grid_types.iq4_xs),
)}
BY_ID = {row.id: row for row in TYPES.values()}


def ggml_type(name_or_id: str | int) -> GGMLType:
    """The row of the table; raises KeyError where there is none."""
    return TYPES[name_or_id] if isinstance(name_or_id, str) else BY_ID[name_or_id]


def is_quantized(name: str) -> bool:
    """Is this, the name of a dtype or of a number format, a quantized one of the table?"""
    return name in TYPES and TYPES[name].plain is None


def dequantize(
    data: torch.Tensor, kind: GGMLType | str | int, shape: Iterable[int], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The values of the blocks in `data` (uint8, on any device) as a tensor of this shape.

    Each quantized value is computed in fp32 and rounded once, to `dtype`. Besides the result this takes a few MB: blocks are
    dequantized in chunks. Raises ValueError where `data` does not have the bytes of so many numbers.
    """
    kind = kind if isinstance(kind, GGMLType) else ggml_type(kind)
    shape = tuple(shape)
    if data.numel() != kind.size(prod(shape)):
        raise ValueError(f"{data.numel():,} bytes, expected {kind.size(prod(shape)):,} for {kind.name} of shape {list(shape)}")
    blocks = data.reshape(-1, kind.bytes)
    values = torch.empty((len(blocks), kind.block), dtype=dtype, device=data.device)
    step = (CHUNK_ON_CPU if data.device.type == "cpu" else CHUNK) // kind.block
    for start in range(0, len(blocks), step):
        values[start:start + step] = kind.decode(blocks[start:start + step])
    return values.reshape(shape)


@dataclass(frozen=True)
class PackedTensor:
    """A quantized tensor as it is in the file: `data` are its bytes (uint8 [bytes]), `shape` is that of its values."""

    data: torch.Tensor
    kind: GGMLType
    shape: tuple[int, ...]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return dequantize(self.data, self.kind, self.shape, dtype)
