"""GGUF files as they are written: version 3 of the container, and what the two dialects tell in it.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping

from .ggml_types import TYPES
from .save_plan import PlannedTensor, Wanted

ALIGNMENT = 32  # bytes; what a reader expects where the file names none
UINT32, INT32, STRING, ARRAY = 4, 5, 8, 9  # kinds of values
FILE_TYPES = {"fp32": 0, "fp16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "bf16": 32}  # of general.file_type
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


def gguf_header(planned: list[PlannedTensor], wanted: Wanted, metadata: Mapping[str, str]) -> bytes:
    """Everything before the values of the tensors, each of which begins at a multiple of `ALIGNMENT`."""
    pairs = list(_pairs(planned, wanted, metadata))
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(planned), len(pairs)), *pairs]
    offset = 0
    for tensor in planned:
        dimensions = tensor.stored[::-1]  # the last one first
        parts += _text(tensor.name), struct.pack(
            f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, TYPES[tensor.format].id, offset
        )
        offset += padded(tensor.size)
    header = b"".join(parts)
    return header.ljust(padded(len(header)), b"\0")


def padded(size: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return size + -size % ALIGNMENT


def _pairs(planned: list[PlannedTensor], wanted: Wanted, metadata: Mapping[str, str]) -> Iterator[bytes]:
    if wanted.dialect == "comfy":
        yield _pair("general.architecture", STRING, _text(_architecture(tensor.name for tensor in planned)))
        yield _pair("general.quantization_version", UINT32, struct.pack("<I", 2))
        yield _pair("general.file_type", UINT32, struct.pack("<I", FILE_TYPES[wanted.type]))
        for tensor in planned:
            if tensor.stored != tensor.shape:
                shape = struct.pack(f"<IQ{len(tensor.shape)}i", INT32, len(tensor.shape), *tensor.shape)
                yield _pair(ORIGINAL_SHAPE + tensor.name, ARRAY, shape)
    for key, value in metadata.items():
        yield _pair(key, STRING, _text(value))


def _architecture(names: Iterable[str]) -> str:
    """What the dialect calls the network; for video a name of our own, which its other readers refuse instead of misreading."""
    names = list(names)
    if any(".time_stack." in name for name in names):
        return "svd"
    return "sdxl" if "label_emb.0.0.weight" in names else "sd1"


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
