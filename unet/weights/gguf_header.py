"""The header of a GGUF file: which tensors are where, and its metadata. Nothing that it says is trusted.

Layout (`docs/gguf.md` of ggml): "GGUF", version, counts; key-value pairs; name, dimensions (the last first), type and offset of
each tensor; then, from a multiple of the alignment on, the data. UNets are written in two dialects: "sdcpp" by
stable-diffusion.cpp (no architecture is named; natural shapes, of five dimensions the first two as one) and "comfy" (one is;
tensors whose rows do not fit blocks are stored as [n/256, 256], with their true shape under a key).
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

from .errors import shorten
from .ggml_types import BY_ID, GGMLType

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 3 only says that big-endian files exist
ARCHITECTURE, ALIGNMENT, TRUE_SHAPE = "general.architecture", "general.alignment", "comfy.gguf.orig_shape."

MOST_TEXTS = 250_000  # keys, names and texts in a header; SDXL has 5,000
MOST_KEY, MOST_NAME, MOST_TEXT = 65_535, 127, 2**20  # bytes; the first two as ggml's readers have them
MOST_DIMENSIONS = 5
MOST_ALIGNMENT = 2**20
LEAST_PAIR, LEAST_TENSOR = 14, 33  # bytes that one takes at least

UINT32, INT32, TEXT, LIST = 4, 5, 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, INT32: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value of each other type

AGAIN = "Download it again."


class Refused(ValueError):
    """The header cannot be read: the reason in a few words, and what to do."""

    def __init__(self, reason: str, advice: str = AGAIN):
        super().__init__(reason)
        self.advice = advice


@dataclass(frozen=True)
class Entry:
    """Where a tensor is in the file: bytes from `start` on."""

    kind: GGMLType
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    dialect: str


class _Reader:
    """Reads numbers and texts, never more than the file still has."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = self.left = os.fstat(file.fileno()).st_size
        self.texts = 0

    def take(self, count: int) -> bytes:
        self._need(count)
        data = self.file.read(count)
        if len(data) < count:
            raise Refused("it was cut while it was read")
        return data

    def skip(self, count: int):
        self._need(count)
        self.file.seek(count, os.SEEK_CUR)

    def _need(self, count: int):
        if count > self.left:
            raise Refused(f"its header ends {count - self.left:,} bytes after the file")
        self.left -= count

    def number(self, count: int) -> int:
        """An unsigned whole number of `count` bytes."""
        return int.from_bytes(self.take(count), "little")

    def length(self, what: str, most: int) -> int:
        """The length of the text that follows."""
        self.texts += 1
        if self.texts > MOST_TEXTS:
            raise Refused(f"it lists more than {MOST_TEXTS:,} texts", "Choose another file.")
        length = self.number(8)
        if length > most:
            raise Refused(f"{what} is {length:,} bytes long, expected {most:,} at most")
        return length

    def text(self, what: str, most: int) -> str:
        try:
            return self.take(self.length(what, most)).decode()
        except UnicodeDecodeError:
            raise Refused(f"{what} is not UTF-8") from None

    def count(self, what: str, least: int) -> int:
        """How many follow, of which each takes `least` bytes."""
        count = self.number(8)
        if count > self.left // least:
            raise Refused(f"its count of {what} is {count:,}, and {self.left:,} bytes follow")
        return count


def read_header(file: BinaryIO) -> Header:
    """Reads the header from the start of an open file; raises Refused."""
    reader = _Reader(file)
    _check_version(reader)
    tensors = reader.count("tensors", LEAST_TENSOR)
    pairs = _read_pairs(reader, reader.count("keys", LEAST_PAIR))
    alignment = _alignment(pairs.pop(ALIGNMENT, 32))
    listed = dict(_read_tensor(reader, index) for index in range(tensors))
    if len(listed) < tensors:
        raise Refused(f"{tensors - len(listed)} of its {tensors:,} tensors have the name of another")
    start = -(-(reader.size - reader.left) // alignment) * alignment
    entries = {
        name: _entry(name, *found, pairs.get(TRUE_SHAPE + name), alignment, start) for name, found in listed.items()
    }
    _check_places(entries, reader.size)
    metadata = {key: value for key, value in pairs.items() if isinstance(value, str)}
    return Header(entries, metadata, "comfy" if ARCHITECTURE in pairs else "sdcpp")


def _check_version(reader: _Reader):
    if reader.take(4) != MAGIC:
        raise Refused("it does not begin with GGUF")
    version = reader.number(4)
    if version >= 2**16 and version % 2**16 == 0:
        raise Refused("its numbers are big-endian, expected little-endian", "Convert it with gguf-convert-endian.")
    if version not in VERSIONS:
        raise Refused(f"its version is {version}, expected 2 or 3", "Get it in one of these.")


def _read_pairs(reader: _Reader, count: int) -> dict[str, str | int | tuple[int, ...]]:
    """The texts, the 32-bit numbers and the true shapes among the key-value pairs; others are passed over."""
    pairs: dict[str, str | int | tuple[int, ...]] = {}
    keys = set()
    for index in range(count):
        key = reader.text(f"key {index}", MOST_KEY)
        if key in keys:
            raise Refused(f"the key {shorten(key)} is there twice")
        keys.add(key)
        value = _read_value(reader, key, reader.number(4))
        if value is not None:
            pairs[key] = value
    return pairs


def _read_value(reader: _Reader, key: str, kind: int) -> str | int | tuple[int, ...] | None:
    if kind == TEXT:
        return reader.text(f"the text under {shorten(key)}", MOST_TEXT)
    if kind == LIST:
        return _read_list(reader, key)
    if kind not in SIZES:
        raise Refused(f"the value under {shorten(key)} is of the unknown type {kind}")
    if kind == UINT32:
        return reader.number(4)
    reader.skip(SIZES[kind])
    return None


def _read_list(reader: _Reader, key: str) -> tuple[int, ...] | None:
    """A tensor's true shape; None for any other list, of which nothing is kept."""
    kind = reader.number(4)
    count = reader.count(f"values under {shorten(key)}", SIZES.get(kind, 8))
    if key.startswith(TRUE_SHAPE):
        if kind != INT32 or not 1 <= count <= MOST_DIMENSIONS:
            raise Refused(f"{shorten(key)} is no shape")
        return struct.unpack(f"<{count}i", reader.take(4 * count))
    if kind == TEXT:
        what = f"a text under {shorten(key)}"
        for _ in range(count):
            reader.skip(reader.length(what, reader.left))
    elif kind in SIZES:
        reader.skip(SIZES[kind] * count)
    else:
        raise Refused(f"the list under {shorten(key)} is of the type {kind}, expected numbers or texts")
    return None


def _alignment(value) -> int:
    if not isinstance(value, int) or not 1 <= value <= MOST_ALIGNMENT or value & value - 1:
        raise Refused(f"its alignment is {shorten(value)}, expected a power of two of {MOST_ALIGNMENT:,} at most")
    return value


def _read_tensor(reader: _Reader, index: int) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    """(name, (shape as stored, type, offset in the data))"""
    name = reader.text(f"the name of tensor {index}", MOST_NAME)
    dimensions = reader.number(4)
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise Refused(f"{shorten(name)} has {dimensions:,} dimensions, expected 1 to {MOST_DIMENSIONS}")
    *shape, kind, offset = struct.unpack(f"<{dimensions}QIQ", reader.take(8 * dimensions + 12))
    return name, (tuple(reversed(shape)), kind, offset)


def _entry(name, shape, kind_id, offset, true_shape, alignment, start) -> Entry:
    kind = BY_ID.get(kind_id)
    if kind is None:
        raise Refused(f"{shorten(name)} is of the ggml type {kind_id}, which is not known", "Get it in another quantization.")
    if 0 in shape or shape[-1] % kind.block:
        raise Refused(f"{shorten(name)} is {shorten(list(shape))}, expected rows of whole blocks of {kind.name} ({kind.block})")
    if offset % alignment:
        raise Refused(f"{shorten(name)} begins at {offset:,}, expected a multiple of {alignment:,}")
    if true_shape is not None and (min(true_shape) < 1 or prod(true_shape) != prod(shape)):
        raise Refused(f"{shorten(name)} is {shorten(list(shape))} and cannot be {shorten(list(true_shape))}")
    return Entry(kind, true_shape or shape, start + offset, kind.size(prod(shape)))


def _check_places(entries: Mapping[str, Entry], size: int):
    """Raises Refused where a tensor is not all in the file, or lies over another."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start < end:
            raise Refused(f"{shorten(name)} lies over another tensor")
        end = entry.start + entry.size
        if end > size:
            raise Refused(f"it is cut off: {shorten(name)} ends at {end:,}, the file at {size:,}")
