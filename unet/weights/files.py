"""Opening files of weights, safetensors or pickled, and saying in words why one cannot be read."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from .errors import UNetFileError, shorten
from .ggml_types import is_quantized
from .gguf_file import GGUFFile
from .gguf_header import MAGIC
from .on_disk import DTYPES, no_model, open_regular
from .pickles import BEFORE_1_6, ZIPPED, PickledFile
from .shards import ShardSet, weight_files

SAFETENSORS = (".safetensors", ".sft")  # endings; a file with another one is expected to be a pickled one
MOST_HEADER = 100_000_000  # bytes; safetensors reads no longer header
MOST_LISTED = 2 * 2**20  # bytes of a header without its strings; SDXL's whole header has 0.3 MB
OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d{1,18})\s*\]')
METADATA = re.compile(rb'"__metadata__"\s*:\s*')
LATER_DTYPE = re.compile(  # a tensor of a dtype that not every version of safetensors reads
    rb'"([^"]{1,200})"\s*:\s*{[^{}]*"dtype"\s*:\s*"(F4|F6_\w+|F8_E8M0|F8_\w+FNUZ|C64)"'
)
MOST_METADATA = 1_000_000  # bytes that are looked through for what is no text; a training's tag counts have 0.2 MB
MOST_STRINGS = 100_000  # in a longer header: names, keys and dtypes of tensors, texts of metadata


def open_any(path: Path):
    """The open file: a safetensors file, a PickledFile, or a ShardSet of these; raises UNetFileError as `open_file`.

    `path` may also be an index of shards, or a folder of diffusers' layout.
    """
    return open_files(path, weight_files(path))


def open_files(path: Path, files: Sequence[Path]):
    """`open_any` where `files`, as `weight_files` gives them, are known."""
    opened = {file: _open_one(file) for file in files}
    return ShardSet(path, opened) if len(opened) > 1 else opened[files[0]]


def _open_one(path: Path):
    """An open file of weights. Its first bytes say which kind it is, where they say neither its ending does."""
    with open_regular(path) as file:
        head = file.read(32)
    if head.startswith(MAGIC):
        return GGUFFile(path)
    if head[8:9] == b"{":  # first, for a header's length may begin as a pickle does
        return open_file(path)
    pickled = head.startswith((ZIPPED, BEFORE_1_6)) or not has_safetensors_ending(path)
    return PickledFile(path) if pickled else open_file(path)


def has_safetensors_ending(path: Path) -> bool:
    return path.suffix.lower() in SAFETENSORS


def is_as_it_ends(path: Path, opened) -> bool:
    """Is an open file a single one of the kind that its ending says? Then a reader that goes by the ending reads it."""
    return isinstance(opened, safe_open if has_safetensors_ending(path) else PickledFile)


def shapes_of(file) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in an open file; reads its header only."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def main_dtype(file, shapes: Mapping[str, tuple[int, ...]]) -> torch.dtype:
    """The dtype that most of the values in these tensors have."""
    counts: dict[torch.dtype, int] = {}
    for name, shape in shapes.items():
        dtype = DTYPES.get(file.get_slice(name).get_dtype(), torch.float32)
        counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    return max(counts, key=counts.__getitem__, default=torch.float32)


def is_mapped(file) -> bool:
    """Do an open file's tensors stay in it until they are used? Else they are in memory since the first was asked for."""
    if isinstance(file, ShardSet):
        return any(map(is_mapped, file.parts))
    return not isinstance(file, PickledFile) or file.mapped


def shapes_and_dtypes_of(file) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shape of every tensor in an open file, and its dtype as safetensors names it; reads its header only."""
    slices = {name: file.get_slice(name) for name in file.keys()}
    shapes = {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
    return shapes, {name: tensor.get_dtype() for name, tensor in slices.items()}


def check_dtypes(dtypes: Mapping[str, str], names: Iterable[str]) -> None:
    """Raises UNetFileError where one of these tensors has a dtype that weights do not have."""
    for name in names:
        if dtypes[name] not in DTYPES and not is_quantized(dtypes[name]):
            raise UNetFileError(_wrong_dtype(name, dtypes[name]))


def _wrong_dtype(name: str, dtype: str) -> str:
    return (
        f"{shorten(name)} is {dtype.removeprefix('torch.')}, expected floating-point numbers: fp32, fp16, bf16, fp64, or fp8 "
        f"(e4m3fn, e5m2). Get the file in one of these dtypes."
    )


def open_file(path: Path, again: str = "Download it again"):
    """The open safetensors file; raises UNetFileError, which names it, where it is missing, damaged or of another kind.

    `again`: how to get such a file again, for the message.
    """
    with open_regular(path) as file:
        _check_header_size(path, file)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        with open_regular(path) as file:
            raise UNetFileError(f"{path.name}: {_explain(path, file, shorten(error, 300), again)}") from None


def _check_header_size(path: Path, file: BinaryIO) -> None:
    """Raises UNetFileError where the header lists so much that reading it would take very much memory."""
    length = int.from_bytes(file.read(8), "little")
    if MOST_LISTED < length <= min(MOST_HEADER, _size(file) - 8) and _listed(file.read(length)) > MOST_LISTED:
        raise UNetFileError(
            f"{path.name}: its header of {length / 2**20:.0f} MiB lists more than any model of the family has: expected about "
            f"20,000 tensors at most. Choose another file."
        )


def _listed(header: bytes) -> int:
    """The bytes of a header that are not in its strings; from the 100,000th string on, all of them."""
    text = header.replace(b"\\\\", b"").replace(b'\\"', b"")  # no quotes but those around strings
    strings = islice(re.finditer(rb'"[^"]*"', text), MOST_STRINGS)
    return len(text) - sum(found.end() - found.start() for found in strings)


def _explain(path: Path, file: BinaryIO, error: str, again: str) -> str:
    """Why a file is no safetensors file, in words that say what to do."""
    head, size = file.read(32), _size(file)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{":
        file.seek(8)
        header = file.read(length) if length <= min(MOST_HEADER, size - 8) else b""
        if 8 + length + max((int(found[1]) for found in OFFSETS.finditer(header)), default=0) > size:
            return f"it is cut off ({size:,} bytes found; {error}). {again}."
        metadata = _odd_metadata(header)
        if metadata is not None:
            return f"its metadata hold {metadata}, expected texts alone. Save it again with each value as a text (str)."
        tensor = LATER_DTYPE.search(header)
        if tensor and re.search("unknown variant|InvalidHeaderDeserialization|subbytes", error):
            return _wrong_dtype(*(part.decode(errors="replace") for part in tensor.groups()))
    found = no_model(path, head, again)
    if found is None and head.startswith((ZIPPED, BEFORE_1_6)):
        rename = "rename it to end in .ckpt and " if has_safetensors_ending(path) else ""
        found = f"it is a pickled PyTorch file (.ckpt, .pt); expected safetensors. Convert it, or {rename}use the host's loader."
    return found or f"it is not a safetensors file ({error}). {again}, or choose another file."


def _odd_metadata(header: bytes) -> str | None:
    """What in a header's metadata is no text, which safetensors does not read; None where all is, or cannot be read."""
    found = METADATA.search(header)
    try:
        start = found.end() if found else len(header)
        metadata = json.JSONDecoder().raw_decode(header[start:start + MOST_METADATA].decode(errors="replace"))[0]
        if not isinstance(metadata, dict):
            return shorten(repr(metadata))
        odd = next(((key, value) for key, value in metadata.items() if not isinstance(value, str)), None)
        return odd and f"{shorten(repr(odd[1]))} under {shorten(repr(odd[0]))}"
    except (ValueError, RecursionError):  # none, no JSON, very deep or very long
        return None


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
