"""Weights that are stored quantized, with scales in tensors of their own: which layers, in which format, by which tensors.

There are four spellings; in all of them a weight is the stored values times its scale:
    a marker, `scaled_fp8`, with `X.scale_weight` and `X.scale_input` for each layer X
    `X.comfy_quant`, JSON in bytes that names the format, with `X.weight_scale` and what else the format needs
    the same scales, with the JSON of all layers in the file's metadata, `_quantization_metadata`
    scales alone: the dtype of the weight says which format it is
Weights of bitsandbytes are of another kind: `four_bit.py`.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from .errors import UNetFileError, shorten
from .four_bit import FOUR_BIT, STATE, TENSORS, check_four_bit, dequantized_four_bit, four_bit_shape
from .kinds import PREFIXES
from .on_disk import DTYPES

KINDS = {  # what a tensor of a layer is called -> what it is
    "weight_scale": "weight_scale", "scale_weight": "weight_scale", "input_scale": "input_scale", "scale_input": "input_scale",
    "weight_scale_2": "weight_scale_2", "pre_quant_scale": "pre_quant_scale",
}
OPTIONS, MARKER, METADATA = "comfy_quant", "scaled_fp8", "_quantization_metadata"
MOST_OPTIONS = 10_000  # bytes of one layer's JSON; real ones have about 50

# Tensors of quantizations that cannot be read here, and what they are called.
UNREADABLE = (
    (r"\.SCB$", "int8 (bitsandbytes)"),
    (r"\.(wscales|wcscales|smooth_factor|smooth_factor_orig)$", "SVDQuant (Nunchaku)"),
    (r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (r"\.weight\._(data|scale|shift)$", "quanto"),
    (r"\.weight_(packed|zero_point)$", "compressed-tensors"),
)


@dataclass(frozen=True)
class Format:
    """How weights of this format are stored: a byte holds `packed` of them, and `block` in a row share a scale (0: no blocks)."""

    dtype: str
    needs: tuple[str, ...] = ("weight_scale",)
    takes: tuple[str, ...] = ("input_scale",)
    packed: int = 1
    block: int = 0
    block_dtypes: tuple[str, ...] = ()


FORMATS = {
    "float8_e4m3fn": Format("F8_E4M3"),
    "float8_e5m2": Format("F8_E5M2"),
    "int8_tensorwise": Format("I8"),
    "mxfp8": Format("F8_E4M3", block=32, block_dtypes=("U8", "F8_E8M0")),
    "nvfp4": Format(
        "U8", needs=("weight_scale", "weight_scale_2"), takes=("input_scale", "pre_quant_scale"), packed=2,
        block=16, block_dtypes=("U8", "F8_E4M3"),
    ),
    "convrot_w4a4": Format("I8", packed=2),
}
BY_DTYPE = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8_tensorwise"}
PLAIN = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")  # weights are the stored values times a scale, one or one a row


@dataclass(frozen=True)
class Quantized:
    """How one weight is stored."""

    options: Mapping[str, Any]  # "format", a name in FORMATS or FOUR_BIT, and what else the file says of the layer
    scales: Mapping[str, str]  # each of KINDS, or of TENSORS, that the layer has, to the tensor's name in the file
    described_by: str | None = None  # the tensor with the options, where they are in one

    @property
    def format(self) -> str:
        return str(self.options.get("format"))

    @property
    def packed(self) -> int:
        return FORMATS[self.format].packed if self.format in FORMATS else 1

    @property
    def rotated(self) -> bool:
        """Are the values those of a rotated weight (ConvRot)?"""
        inner = self.options.get("params")
        return bool(self.options.get("convrot", isinstance(inner, dict) and inner.get("convrot")))


def refuse_unreadable(names: Collection[str]) -> None:
    """Raises UNetFileError where tensors of these names are of a quantization that is not read here."""
    for pattern, kind in UNREADABLE:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found is not None:
            raise UNetFileError(
                f"its weights are quantized as {kind} ({shorten(found)}), which is not read here; expected fp32, fp16, bf16, fp8, "
                f"scaled fp8, int8 or nf4. Get the model in one of these, or as GGUF."
            )


def find_quantized(file, dtypes: Mapping[str, str], metadata: Mapping[str, str]) -> dict[str, Quantized]:
    """How each weight of an open file with scales or a description of its own is stored, by the weight's name in the file.

    Reads the header and the descriptions alone. Raises UNetFileError where a description is no JSON.
    """
    described, markers = _described(metadata), [name for name in dtypes if re.search(rf"(^|\.){MARKER}$", name)]
    scales: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    for name in dtypes:
        layer, _, kind = name.rpartition(".")
        if f"{layer}.weight" not in dtypes:
            continue
        if kind in KINDS:
            scales.setdefault(layer, {})[KINDS[kind]] = name
        elif kind == OPTIONS:
            texts[layer] = name
    found = {}
    for layer in dict.fromkeys([*scales, *texts]):
        options = next((described[path] for path in map(layer.removeprefix, PREFIXES) if path in described), None)
        if options is None and layer in texts:
            options = _options(file, texts[layer])
        elif options is None:
            options = {"format": BY_DTYPE.get(dtypes[f"{layer}.weight"], "float8_e4m3fn"), **_old_options(file, layer, markers)}
        found[f"{layer}.weight"] = Quantized(options, scales.get(layer, {}), texts.get(layer))
    return found | _find_four_bit(file, dtypes)


def _find_four_bit(file, dtypes: Mapping[str, str]) -> dict[str, Quantized]:
    found = {}
    for match in filter(None, (re.match(STATE, name) for name in dtypes)):
        name, kind = match.groups()
        if name in dtypes:
            scales = {tensor: f"{name}.{tensor}" for tensor in TENSORS if f"{name}.{tensor}" in dtypes}
            found[name] = Quantized({**_options(file, match[0]), "format": kind}, scales, match[0])
    return found


def belonging(quantized: Mapping[str, Quantized], names: Collection[str]) -> set[str]:
    """The tensors that belong to quantized weights, and the markers."""
    tensors = {name for name in names if re.search(rf"(^|\.){MARKER}$", name)}
    for weight in quantized.values():
        tensors.update(weight.scales.values(), [weight.described_by] if weight.described_by else ())
    return tensors


def _described(metadata: Mapping[str, str]) -> Mapping[str, dict]:
    """The options of each layer that the metadata describe."""
    if METADATA not in metadata:
        return {}
    layers = _json(metadata[METADATA], f"its metadata {METADATA}").get("layers")
    if not isinstance(layers, dict) or not all(isinstance(options, dict) for options in layers.values()):
        raise UNetFileError(f"its metadata {METADATA} have no table of layers: {{\"layers\": …}}. Get the file again.")
    return layers


def _options(file, name: str) -> dict:
    """What the bytes of this tensor say of its layer."""
    part = file.get_slice(name)
    if part.get_dtype() != "U8" or prod(part.get_shape()) > MOST_OPTIONS:
        raise UNetFileError(
            f"{shorten(name)} is {part.get_dtype()} {shorten(list(part.get_shape()))}, expected JSON in bytes, {MOST_OPTIONS:,} at "
            f"most. Get the file again."
        )
    return _json(bytes(file.get_tensor(name).flatten().tolist()).decode(errors="replace"), shorten(name))


def _json(text: str, where: str) -> dict:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UNetFileError(f"{where} is {shorten(repr(text))}, expected JSON that describes a quantization. Get the file again.")
    return found


def _old_options(file, layer: str, markers: list[str]) -> dict:
    """Of a layer that nothing describes: a marker of two values says that it is computed in full precision."""
    own = next((name for name in markers if layer.startswith(name.removesuffix(MARKER))), None)
    full = own is not None and prod(file.get_slice(own).get_shape()) == 2
    return {"full_precision_matrix_mult": True} if full else {}


def network_shapes(shapes: Mapping[str, tuple[int, ...]], quantized: Mapping[str, Quantized]) -> dict[str, tuple[int, ...]]:
    """The shapes that the tensors stand for, where a byte may hold two weights of a row."""
    packed = {}
    for name, weight in quantized.items():
        if weight.format in FOUR_BIT:
            packed[name] = four_bit_shape(name, weight.options, shapes[name])
        elif weight.packed > 1 and shapes[name]:
            packed[name] = (*shapes[name][:-1], shapes[name][-1] * weight.packed)
    return {**shapes, **packed}


def check_quantized(name: str, weight: Quantized, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> None:
    """Raises UNetFileError where this weight cannot be stored so: another dtype, scales missing or not of its shape.

    `shapes`: as `network_shapes` has them.
    """
    if weight.format in FOUR_BIT:
        return check_four_bit(name, weight.options, weight.scales, shapes, dtypes)
    expected = FORMATS.get(weight.format)
    if expected is None:
        raise UNetFileError(
            f"{shorten(name)} is quantized as '{shorten(weight.format)}', expected one of {', '.join(FORMATS)}. Get the file in "
            f"one of these, in fp16 or in fp8."
        )
    if dtypes[name] != expected.dtype:
        raise UNetFileError(
            f"{shorten(name)} is {dtypes[name]}, expected {expected.dtype} of a weight quantized as {weight.format}. "
            f"The file is damaged: get it again."
        )
    lacking = [kind for kind in expected.needs if kind not in weight.scales]
    if lacking:
        raise UNetFileError(
            f"{shorten(name)} is quantized as {weight.format}, but its {lacking[0]} is missing. The file is damaged: get it again."
        )
    for kind, scale in weight.scales.items():
        counts, allowed = _allowed(kind, expected, shapes[name])
        if kind not in (*expected.needs, *expected.takes) or prod(shapes[scale]) not in counts or dtypes[scale] not in allowed:
            raise UNetFileError(
                f"{shorten(scale)} is {dtypes[scale]} {shorten(list(shapes[scale]))}, which is no {kind} of a weight "
                f"{shorten(list(shapes[name]))} quantized as {weight.format}. The file is damaged: get it again."
            )
    return None


def _allowed(kind: str, expected: Format, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Collection[str]]:
    """How many values a tensor of this kind may have, and their dtypes."""
    if kind == "weight_scale" and expected.block:
        # Scales of blocks are stored in tiles of 128 rows and 4 blocks.
        rows, blocks = -(-prod(shape[:-1]) // 128) * 128, -(-shape[-1] // (4 * expected.block)) * 4
        return (rows * blocks,), expected.block_dtypes
    counts = {"weight_scale": (1, prod(shape[:1])), "pre_quant_scale": (prod(shape[-1:]),)}
    return counts.get(kind, (1,)), DTYPES


def can_dequantize(weight: Quantized) -> bool:
    """Whether `dequantized` knows this format."""
    return weight.format in FOUR_BIT or weight.format in PLAIN and not weight.rotated


def dequantized(name: str, weight: Quantized, read) -> torch.Tensor:
    """The weight in fp32, by `read` of the tensors in the file: the stored values times the scale, one for all, a row or a block.

    Raises UNetFileError where its format is none of these.
    """
    if not can_dequantize(weight):
        raise UNetFileError(
            f"{shorten(name)} is quantized as {weight.format}{' with a rotation' if weight.rotated else ''}, which only a graphics "
            f"card's own layers read; expected fp8 or int8 with scales, or plain weights. Get the model in one of these."
        )
    if weight.format in FOUR_BIT:
        return dequantized_four_bit(name, weight.options, weight.scales, read)
    stored = read(name)
    scale = read(weight.scales["weight_scale"]).to(torch.float32)
    return stored.to(torch.float32) * scale.reshape(-1, *[1] * (stored.ndim - 1))


def scale_bytes(weight: Quantized, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> int:
    """What the scales of a weight take as they are stored."""
    sizes = {scale: DTYPES[dtypes[scale]].itemsize if dtypes[scale] in DTYPES else 1 for scale in weight.scales.values()}
    return sum(prod(shapes[scale]) * size for scale, size in sizes.items())


def refuse_scales(unexpected: Collection[str]) -> None:
    """Raises UNetFileError where tensors that a network does not use are scales: its weights would be silently wrong without."""
    ends = tuple(f".{kind}" for kind in (*KINDS, *TENSORS, OPTIONS))
    scales = [name for name in unexpected if name.endswith(ends)]
    if scales:
        raise UNetFileError(
            f"{len(scales)} scales of quantized weights ({shorten(scales[0])}, …) belong to no weight that can be read by them. "
            f"Expected each next to its weight, or plain fp32, fp16, bf16 or fp8. Get the file again, or in one of these dtypes."
        )
