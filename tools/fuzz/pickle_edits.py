"""Changes of pickles, which are programs, and of the archives that PyTorch keeps them in."""
from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from random import Random

from tools.fuzz.guarded import MARK

WRITES = f"open('{MARK}', 'w')".encode()


def _text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def _long(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


CODE = [  # what runs code, in each way that a pickle can
    b"cbuiltins\nexec\n(" + _text(WRITES) + b"tR", b"cposix\nsystem\n(" + _text(f"touch {MARK}".encode()) + b"tR",
    b"(" + _text(WRITES) + b"ibuiltins\nexec\n", b"(cbuiltins\nexec\n" + _text(WRITES) + b"o",
    b"\x8c\x08builtins\x8c\x04exec\x93" + _text(WRITES) + b"\x85R", b"c__builtin__\neval\n" + _text(WRITES) + b"\x85R",
    b"cbuiltins\ngetattr\n(cbuiltins\n__dict__\n" + _text(b"exec") + b"tR", b"ctorch.hub\nload\n(" + _text(b".") + b"tR",
    b"cbuiltins\nbytearray\n" + _long(2**40) + b"\x85R", b"ctorch\nempty\n" + _long(2**40) + b"\x85R",
    b"ctorch.storage\n_load_from_bytes\nC\x04\x80\x02N.\x85R", b"cnumpy\nzeros\n" + _long(2**40) + b"\x85R",
    b"ctorch._utils\n_rebuild_parameter\n(NNNtR", b"ccollections\nCounter\n(" + _text(b"a" * 999) + b"tR",
]
STEPS = [
    *(bytes([step]) for step in b"012.()]}NtRbQsuae\x81\x85\x86\x87\x88\x8f\x90\x92\x94\x97\x98"),  # those without an argument
    b"\x95" + bytes(8), b"h\0", b"q\0", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"\x82\1", b"\x80\xff", b"K\xff",
    b"J\xff\xff\xff\xff", b"G" + b"\xff" * 8, b"I01\n", b"L99999L\n", b"F1e999\n", b"V\\ud800\n", b"P0\n",
    b"\x8b\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"B\xff\xff\xff\xff", b"\x96" + b"\xff" * 8,
    _long(2**40), _long(-1), _long(2**63), _long(2**2000), _text(b"x" * 5000), b"}(" + _text(b"a") * 2 + b"u", b"(" * 1000,
    b")\x85" + b"\x85" * 9999,
]


def edited(program: bytes, random: Random) -> bytes:
    """A pickle with some steps changed, left out, put in or moved."""
    places = [0]
    try:
        places = [place for _, _, place in pickletools.genops(program)]
    except Exception:  # noqa: BLE001 - pickletools ends in many ways on what was changed before
        places = list(range(0, len(program), 7)) or [0]
    at = random.choice(places)
    end = min([place for place in places if place > at], default=len(program))
    match random.randrange(7):
        case 0:
            new = random.choice(CODE) + random.choice((b"", b"0", program[at:end]))
        case 1 | 2:
            new = random.choice(STEPS) + random.choice((b"", program[at:end]))
        case 3:
            new = b""
        case 4:
            other = random.choice(places)
            new = program[other:other + random.choice((1, 10, 200))]
        case 5:
            new = program[at:end][:100] * random.choice((2, 3, 10_000))
        case _:
            step = bytearray(program[at:end] or b"0")
            step[random.randrange(len(step))] = random.randrange(256)
            new = bytes(step)
    return program[:at] + new + program[end:]


def edited_archive(data: bytes, random: Random) -> bytes:
    """An archive of PyTorch with another program, or with its parts renamed, compressed, left out or there twice."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = [(part.filename, archive.read(part)) for part in archive.infolist()]
    except Exception:  # noqa: BLE001 - zipfile ends in many ways on what was changed before
        return data
    parts = parts or [("archive/data.pkl", b".")]
    index = random.randrange(len(parts))
    match random.randrange(8):
        case 0:
            name = random.choice(["archive/constants.pkl", "x/data.pkl", "../data.pkl", parts[0][0], "a\0b", ""])
            parts[index] = (name, parts[index][1])
        case 1:
            del parts[index]
        case 2:
            parts.append((random.choice([parts[index][0], "archive/code/a.py", "archive/data.pkl", "other/data.pkl"]), b"\x80\2N."))
        case 3:
            parts[index] = (parts[index][0], parts[index][1] + bytes(random.choice((1, 10**6))))
        case _:
            parts = [(name, edited(content, random) if name.endswith("/data.pkl") else content) for name, content in parts]
    made = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, content in parts:
            archive.writestr(zipfile.ZipInfo(name), content, how)
    return made.getvalue()
