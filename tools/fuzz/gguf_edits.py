"""Numbers in a GGUF header: where each is."""
from __future__ import annotations

from collections.abc import Iterator

TEXT, LIST = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def fields(data: bytes) -> list[tuple[int, int]]:
    """(place, bytes) of every number in the header of a GGUF file, as far as it can be followed."""
    found: list[tuple[int, int]] = []
    try:
        for place, size in _walk(data):
            found.append((place, size))
            if place > len(data) or len(found) > 100_000:
                break
    except KeyError:  # a type that another edit made
        pass
    return found


def _walk(data: bytes) -> Iterator[tuple[int, int]]:
    def number(size: int) -> int:
        return int.from_bytes(data[at:at + size], "little")

    at = 4
    yield at, 4
    at += 4
    tensors, pairs = int.from_bytes(data[8:16], "little"), int.from_bytes(data[16:24], "little")
    yield 8, 8
    yield 16, 8
    at = 24
    for _ in range(pairs):
        yield at, 8
        at += 8 + number(8)
        yield at, 4
        kind, at = number(4), at + 4
        count = 1
        if kind == LIST:
            yield at, 4
            yield at + 4, 8
            kind, count, at = number(4), int.from_bytes(data[at + 4:at + 12], "little"), at + 12
        for _ in range(count):
            size = 8 if kind == TEXT else SIZES[kind]
            yield at, size
            at += 8 + number(8) if kind == TEXT else size
    for _ in range(tensors):
        yield at, 8
        at += 8 + number(8)
        yield at, 4
        dimensions, at = number(4), at + 4
        for _ in range(dimensions):
            yield at, 8
            at += 8
        yield at, 4
        yield at + 4, 8
        at += 12
