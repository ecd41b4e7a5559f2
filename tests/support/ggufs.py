"""GGUF files written byte by byte, so that any field of them can be wrong."""

import struct

UINT32, INT32, TEXT, LIST = 4, 5, 8, 9


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def text_pair(key, value) -> bytes:
    return pair(key, TEXT, text(value))


def list_pair(key, kind: int, values: bytes, count: int) -> bytes:
    return pair(key, LIST, struct.pack("<IQ", kind, count) + values)


def shape_pair(name: str, shape) -> bytes:
    return list_pair("comfy.gguf.orig_shape." + name, INT32, struct.pack(f"<{len(shape)}i", *shape), len(shape))


def tensor(name: str | bytes, dimensions=(4,), kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry; `dimensions` as in the file, the last first."""
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


def gguf(tensors=(), pairs=(), data: bytes = b"", *, version=3, tensor_count=None, pair_count=None, alignment=32) -> bytes:
    """A file of these entries and pairs; the counts are theirs where none are given."""
    counts = (len(tensors) if tensor_count is None else tensor_count, len(pairs) if pair_count is None else pair_count)
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data
