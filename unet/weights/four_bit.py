"""Weights of four bits as bitsandbytes writes them, nf4 and fp4: an index into a table of 16 values, times the scale of its block.

`X.weight` holds two indices a byte, the first in the high bits, of all values in order; `X.weight.absmax` has a scale for each
block of (usually) 64 values, which may be quantized itself: an index into a table of 256, times the scale of (usually) 256 scales,
plus an offset.
Its settings are JSON in `X.weight.quant_state.bitsandbytes__nf4`. Source: Dettmers et al. 2023, QLoRA, sections 2 and 3.
"""

import math
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch

from .errors import UNetFileError, shorten

STATE = r"^(.+\.weight)\.quant_state\.bitsandbytes__(nf4|fp4)$"
FOUR_BIT = ("nf4", "fp4")
MOST_BLOCK = 2**16  # values that share a scale; bitsandbytes offers up to 4096
TENSORS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


def four_bit_shape(name: str, options: Mapping[str, Any], stored: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a weight stands for by its settings; raises UNetFileError where its bytes do not hold as many values."""
    shape = options.get("shape")
    fits = isinstance(shape, list) and 0 < len(shape) <= 5 and all(type(dim) is int and dim > 0 for dim in shape)
    if not fits or (prod(shape) + 1) // 2 != prod(stored):  # type: ignore[arg-type]  # a list where it fits
        raise UNetFileError(
            f"{shorten(name)} has {prod(stored):,} bytes of two values each, which are not of the shape {shorten(shape)} that its "
            f"settings give. The file is damaged: get it again."
        )
    return tuple(shape)  # type: ignore[arg-type]  # as above


def check_four_bit(name: str, options: Mapping[str, Any], scales: Mapping[str, str], shapes, dtypes) -> None:
    """Raises UNetFileError where this weight, or a tensor of its scales, is missing, of another size or of another dtype.

    `shapes`: of the weight the one that it stands for.
    """
    blocks = -(-prod(shapes[name]) // _count(name, options, "blocksize"))
    expected = {"absmax": ("F32", blocks), "quant_map": ("F32", 16)}
    if "nested_absmax" in scales:
        outer = -(-blocks // _count(name, options, "nested_blocksize"))
        expected |= {"absmax": ("U8", blocks), "nested_absmax": ("F32", outer), "nested_quant_map": ("F32", 256)}
        _offset(name, options)
    for kind, (dtype, count) in expected.items():
        found = scales.get(kind)
        if found is None or dtypes[found] != dtype or prod(shapes[found]) != count:
            held = "missing" if found is None else f"{dtypes[found]} {shorten(list(shapes[found]))}"
            raise UNetFileError(
                f"the {kind} of {shorten(name)} is {held}, expected {count:,} values {dtype} of a weight quantized as "
                f"{options['format']}. The file is damaged: get it again."
            )
    if dtypes[name] != "U8":
        raise UNetFileError(
            f"{shorten(name)} is {dtypes[name]}, expected U8 of a weight quantized as {options['format']}. The file is damaged: "
            f"get it again."
        )


def dequantized_four_bit(
    name: str, options: Mapping[str, Any], scales: Mapping[str, str], read: Callable[[str], torch.Tensor],
) -> torch.Tensor:
    """The weight in fp32, by `read` of the tensors in the file."""
    tensors = {kind: read(tensor) for kind, tensor in scales.items()}
    scale = tensors["absmax"].flatten()
    if "nested_absmax" in tensors:
        outer = tensors["nested_absmax"].flatten().repeat_interleave(options["nested_blocksize"])[:scale.numel()]
        scale = tensors["nested_quant_map"].flatten()[scale.long()] * outer + options["nested_offset"]
    stored, count = read(name).flatten(), prod(options["shape"])
    values = tensors["quant_map"].flatten()[torch.stack([stored >> 4, stored & 15], dim=1).flatten()[:count].int()]
    return (values * scale.repeat_interleave(options["blocksize"])[:count]).reshape(options["shape"])


def _count(name: str, options: Mapping[str, Any], key: str) -> int:
    if type(options.get(key)) is not int or not 0 < options[key] <= MOST_BLOCK:
        raise UNetFileError(
            f"the settings of {shorten(name)} give {key} as {shorten(repr(options.get(key)))}, expected a whole number from 1 to "
            f"{MOST_BLOCK:,}. The file is damaged: get it again."
        )
    return options[key]


def _offset(name: str, options: Mapping[str, Any]) -> None:
    offset = options.get("nested_offset")
    if type(offset) is not float or not math.isfinite(offset):
        raise UNetFileError(
            f"the settings of {shorten(name)} give nested_offset as {shorten(repr(offset))}, expected a number with a point. The "
            f"file is damaged: get it again."
        )
