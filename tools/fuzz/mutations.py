"""Damage to inputs: by their format, and to bytes alone. All choices come from the given `Random`."""
from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from random import Random

from tools.fuzz import gguf_edits, json_edits, pickle_edits
from tools.fuzz.tensor_edits import NUMBERS, tensors

MOST_BYTES = 2**25  # of a file

Files = Mapping[str, bytes]  # of one input, by their paths in its folder
Edit = Callable[[bytes, Random, list[bytes]], bytes]  # (a file, choices, files of other inputs)

SIGNS = [
    *"0123456789.:,;-+eE_ \t\n：，、；\0é'\"\\∞", "inf", "nan", "1e400", "-0", "1_000", "0:1", ", ", "0x1", "\u2028", "\ud800",
    "1" * 400, "0." + "0" * 400, "٣", "½", "😀",
]


def mutated(files: Files, random: Random, pool: list[bytes]) -> dict[str, bytes]:
    """The files with some damage to one of them, or to two; `pool`: files to take bytes from."""
    made = dict(files)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        name = random.choice(list(made))
        new = random.choice(edits_for(made[name]))(made[name], random, pool)
        made[name] = new[:MOST_BYTES]
    if len(made) > 1 and random.random() < 0.05:
        del made[random.choice(list(made))]
    return made


def edits_for(data: bytes) -> list[Edit]:
    if data.startswith(b"GGUF"):
        return [gguf_field, gguf_field, gguf_field, some_bytes]
    if data.startswith(b"PK\x03"):
        return [lambda data, random, _: pickle_edits.edited_archive(data, random)] * 3 + [some_bytes, last_bytes]
    if data.startswith(b"\x80"):
        return [lambda data, random, _: pickle_edits.edited(data, random)] * 3 + [some_bytes]
    if data[8:9] == b"{":
        return [header, header, length, some_bytes] + [lambda data, random, _: tensors(data, random)] * 3
    if data.lstrip().startswith(b"{"):
        return [lambda data, random, _: json_edits.edited(data, random)] * 4 + [some_bytes]
    return [text, text, text, some_bytes]


def some_bytes(data: bytes, random: Random, pool: list[bytes]) -> bytes:
    """Bits, numbers, cuts and splices anywhere, most often near the beginning."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        most = min(len(made), 3000) if random.random() < 0.7 else len(made)
        at = random.randrange(most + 1)
        span = random.choice((1, 2, 4, 8, 64, 1000))
        match random.randrange(9):
            case 0 | 1 if at < len(made):
                made[at] ^= 1 << random.randrange(8)
            case 2:
                size = random.choice((1, 2, 4, 8))
                made[at:at + size] = (random.choice(NUMBERS) % 256**size).to_bytes(size, "little")
            case 3:
                del made[at:at + span]
            case 4:
                made[at:at] = made[at:at + span]
            case 5:
                other = random.choice(pool)
                start = random.randrange(len(other) + 1)
                made[at:at + span] = other[start:start + random.choice((span, len(other)))]
            case 6:
                del made[at:]
            case 7:
                made[at:at] = bytes(random.choice((1, 8, 4096)))
            case _:
                made[at:at + span] = random.randbytes(span)
    return bytes(made)


def last_bytes(data: bytes, random: Random, pool: list[bytes]) -> bytes:
    """Of an archive: its list of contents, which stands at the end."""
    at = max(0, len(data) - random.choice((22, 100, 400)))
    return data[:at] + some_bytes(data[at:], random, pool)


def text(data: bytes, random: Random, pool: list[bytes]) -> bytes:
    """Signs put in, left out or doubled."""
    made = list(data.decode("utf-8", "surrogatepass")) if _is_text(data) else []
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(made) + 1)
        new = random.choice([[], [random.choice(SIGNS)], made[:50], [random.choice(SIGNS)] * random.choice((1, 100, 20_000))])
        made[at:at + random.choice((0, 1, 3))] = new
    return "".join(made).encode("utf-8", "surrogatepass")


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def gguf_field(data: bytes, random: Random, pool: list[bytes]) -> bytes:
    """Numbers of the header."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        fields = gguf_edits.fields(bytes(made))
        at, size = random.choice(fields[:40] if random.random() < 0.3 else fields)
        now = int.from_bytes(made[at:at + size], "little")
        new = random.choice([*NUMBERS, now + 1, now - 1, now * 2, now ^ 1 << random.randrange(8 * size), random.randrange(45)])
        made[at:at + size] = (new % 256**size).to_bytes(size, "little")
    return bytes(made)


def header(data: bytes, random: Random, pool: list[bytes]) -> bytes:
    """The JSON of a safetensors file, of which the length fits again."""
    size = int.from_bytes(data[:8], "little")
    made = json_edits.edited(data[8:8 + size], random)
    return struct.pack("<Q", len(made)) + made + data[8 + size:]


def length(data: bytes, random: Random, pool: list[bytes]) -> bytes:
    size = int.from_bytes(data[:8], "little")
    return struct.pack("<Q", random.choice([*NUMBERS, size - 1, size + 1, len(data), len(data) - 8]) % 2**64) + data[8:]
