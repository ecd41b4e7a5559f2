"""Looking through a file that `torch.save` wrote, before PyTorch or a host follows its instructions.

A pickle is a program. PyTorch runs no code from it with `weights_only`, but still makes arrays of any size, unpacks archives of
any size, and hands TorchScript archives and tar files to other readers (CVE-2025-32434). What `torch.save` writes of weights is
little: it is followed here step by step, and nothing of it is carried out.
"""

import io
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import torch

MOST_BYTES = 4 * 2**20  # of instructions, and of an archive's list of contents; a net of 1,000 tensors has 0.1 MB
MOST_STEPS = 400_000  # a net of 1,000 tensors has 32,000
MOST_DEPTH = 50  # of tuples in tuples; those of tensors are 2 deep
MOST_TEXT = 1000  # characters of an argument
LONG_BYTES = 9  # of an integer; the largest seed takes so many

CUT = "it is damaged or cut off"
OBJECTS = "it is damaged, or holds Python objects besides tensors"
MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)[2:]  # begins files of before PyTorch 1.6, after the bytes of the protocol

DICTS = {"collections.OrderedDict", "collections.Counter"}
CALLED = DICTS | {  # what may be called, by its name in the file
    "_codecs.encode", "__builtin__.set", "__builtin__.complex", "torch.Size", "torch.device", "torch.serialization._get_layout",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.nn.parameter.Parameter",
    "torch._tensor._rebuild_from_type_v2",
}
STORAGE = re.compile(r"torch\.(?:storage\.|cuda\.)?\w+Storage")


class Refused(Exception):
    """The reason why a file is not given to PyTorch, in a few words."""


def check_archive(opened: BinaryIO) -> None:
    """Raises Refused where a zip archive is not as `torch.save` writes it, or its instructions are not."""
    file = _SmallReads(opened.fileno(), closefd=False)
    try:
        contents = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        raise Refused("it is cut off") from None
    programs = [part for part in contents if part.orig_filename.lower().endswith("/data.pkl")]  # as PyTorch compares names
    if any(part.orig_filename.lower().endswith("/constants.pkl") for part in contents):
        raise Refused("it is a TorchScript archive, which holds a program")
    if any(part.compress_type != zipfile.ZIP_STORED for part in contents):
        raise Refused("its contents are compressed, which PyTorch never does")
    if len(programs) != 1 or programs[0].file_size > MOST_BYTES or not 0 <= programs[0].header_offset < _size(file):
        raise Refused(CUT)
    _Walk(_stored(file, programs[0]), _size(file)).pickle()


def check_before_1_6(file: BinaryIO) -> None:
    """The check of a file in the format before PyTorch 1.6, which begins with five pickles, the first a number; raises Refused."""
    data = file.read(MOST_BYTES)
    if not data[2:].startswith(MAGIC) or _is_tar(data):
        raise Refused(CUT)
    walk = _Walk(data, _size(file))
    walk.at = 2 + len(MAGIC)
    for _ in ("version", "machine", "what was saved", "names of its storages"):
        walk.pickle()


class _SmallReads(io.FileIO):
    """A file of which little is read at a time, whatever an archive says of the size of its contents."""

    def read(self, size: int | None = -1) -> bytes:
        size = _size(self) - self.tell() if size is None or size < 0 else size
        if size > MOST_BYTES:
            raise zipfile.BadZipFile("too large")
        return super().read(size)


def _stored(file: io.FileIO, part: zipfile.ZipInfo) -> bytes:
    """The bytes of an uncompressed file in an archive. Its checksum may be absent (`torch.serialization.set_crc32_options`)."""
    file.seek(part.header_offset)
    name_size, extra_size = struct.unpack("<26x2H", file.read(30).ljust(30, b"\0"))
    file.seek(name_size + extra_size, os.SEEK_CUR)
    return file.read(part.file_size)


def _is_tar(data: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(data[:tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _size(file: io.FileIO | BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


class _Name(str):
    """The name of a class or function that the file asks for."""


class _Tuple(tuple):
    """A tuple, and how deep tuples lie in it. To hash a very deep one overflows the stack of the process."""

    depth = 0

    @classmethod
    def of(cls, items: list) -> "_Tuple":
        made = cls(items)
        made.depth = 1 + max((item.depth for item in items if type(item) is cls), default=0)
        if made.depth > MOST_DEPTH:
            raise Refused(CUT)
        return made


_DICT = object()  # stands for a dictionary; None for what needs no look


class _Walk:
    """Follows pickles in `data` of a file of `size` bytes, keeping of each value no more than is looked at."""

    def __init__(self, data: bytes, size: int):
        self.data, self.at, self.size = data, 0, size
        self.steps = 0
        self.names = CALLED | _registered()

    def pickle(self) -> None:
        """Follows one pickle to its end; raises Refused."""
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.storages: set[object] = set()
        self.values = 0  # in the storages
        try:
            while (step := self.data[self.at]) != pickle.STOP[0]:
                self.at += 1
                self.steps += 1
                if self.steps > MOST_STEPS:
                    raise Refused(CUT)
                STEPS[step](self)
            self.at += 1
        except (LookupError, UnicodeDecodeError):  # the end, an unknown step, an empty stack
            raise Refused(CUT) from None

    def take(self, count: int) -> bytes:
        """The next bytes of the program."""
        part = self.data[self.at:self.at + count]
        if len(part) < count:
            raise Refused(CUT)
        self.at += count
        return part

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + MOST_TEXT)
        if end < 0:
            raise Refused(CUT)
        return self.take(end + 1 - self.at)[:-1].decode()

    def pop(self, count: int) -> list:
        """The last values, from the deepest."""
        if len(self.stack) < count:
            raise Refused(CUT)
        start = len(self.stack) - count
        values, self.stack[start:] = self.stack[start:], []
        return values

    def pop_mark(self) -> list:
        return self.pop(len(self.stack) - self.marks.pop())

    def name(self) -> None:
        name = f"{self.line()}.{self.line()}"
        if not (name in self.names or name == "torch.Tensor" or STORAGE.fullmatch(name) or _is_dtype(name)):
            raise Refused(OBJECTS)
        self.stack.append(_Name(name))

    def long(self) -> None:
        size = self.number(1)
        if size > LONG_BYTES:
            raise Refused(CUT)
        self.stack.append(self.number(size, signed=True))

    def call(self) -> None:
        called, arguments = self.pop(2)
        known = type(called) is _Name and called in self.names and type(arguments) is _Tuple
        if not known or not _is_harmless(called, arguments):
            raise Refused(OBJECTS)
        self.stack.append(_DICT if called in DICTS else None)

    def storage(self) -> None:
        """A storage by its name and count of values: all of them are in the file, each of a byte at least."""
        (found,) = self.pop(1)
        if type(found) is not _Tuple or len(found) < 5 or found[0] != "storage" or type(found[4]) is not int or found[4] < 0:
            raise Refused(CUT)
        self.values += 0 if found[2] in self.storages else found[4]
        self.storages.add(found[2])
        if self.values > self.size:
            raise Refused(CUT)
        self.stack.append(None)

    def set_items(self, items: list) -> None:
        """Puts values under keys, in nothing but a dictionary: a tensor would be written to."""
        if self.stack[-1] is not _DICT:
            raise Refused(CUT)


def _is_harmless(called: str, arguments: _Tuple) -> bool:
    """Can a call of these arguments take no more memory than the file does?"""
    if called == "_codecs.encode":  # how bytes are pickled
        return arguments[1:] == ("latin1",)
    return not any(type(argument) is str and len(argument) > MOST_TEXT for argument in arguments)


def _registered() -> set[str]:
    """Names that this process has allowed besides PyTorch's own (`torch.serialization.add_safe_globals`)."""
    found = (entry if isinstance(entry, tuple) else (entry, None) for entry in torch.serialization.get_safe_globals())
    return {name or f"{entry.__module__}.{entry.__qualname__}" for entry, name in found}


def _is_dtype(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return module == "torch" and isinstance(vars(torch).get(kind), torch.dtype)


Step = Callable[[_Walk], object]


def _constant(value: object = None, size: int = 0) -> Step:
    """Puts down what stands for a value; `size` bytes of it follow the step."""
    def step(walk: _Walk) -> None:
        walk.take(size)
        walk.stack.append(value)

    return step


def _text(size: int) -> Step:
    return lambda walk: walk.stack.append(walk.take(walk.number(size)).decode("utf-8", "surrogatepass"))


def _number(size: int, signed: bool = False) -> Step:
    return lambda walk: walk.stack.append(walk.number(size, signed))


def _tuple(count: int) -> Step:
    return lambda walk: walk.stack.append(_Tuple.of(walk.pop(count)))


def _get(size: int) -> Step:
    return lambda walk: walk.stack.append(walk.memo[walk.number(size)])


def _put(size: int) -> Step:
    return lambda walk: walk.memo.__setitem__(walk.number(size), walk.stack[-1])


STEPS: dict[int, Step] = {step[0]: follow for step, follow in {
    pickle.PROTO: lambda walk: walk.take(1),
    pickle.NONE: _constant(), pickle.NEWTRUE: _constant(), pickle.NEWFALSE: _constant(), pickle.BINFLOAT: _constant(size=8),
    pickle.EMPTY_LIST: _constant(), pickle.EMPTY_SET: _constant(), pickle.EMPTY_DICT: _constant(_DICT),
    pickle.EMPTY_TUPLE: _constant(_Tuple()),
    pickle.BININT: _number(4, signed=True), pickle.BININT1: _number(1), pickle.BININT2: _number(2), pickle.LONG1: _Walk.long,
    pickle.BINUNICODE: _text(4), pickle.SHORT_BINSTRING: _text(1),
    pickle.MARK: lambda walk: walk.marks.append(len(walk.stack)),
    pickle.TUPLE: lambda walk: walk.stack.append(_Tuple.of(walk.pop_mark())),
    pickle.TUPLE1: _tuple(1), pickle.TUPLE2: _tuple(2), pickle.TUPLE3: _tuple(3),
    pickle.APPEND: lambda walk: walk.pop(1), pickle.APPENDS: _Walk.pop_mark,
    pickle.SETITEM: lambda walk: walk.set_items(walk.pop(2)), pickle.SETITEMS: lambda walk: walk.set_items(walk.pop_mark()),
    pickle.BINGET: _get(1), pickle.LONG_BINGET: _get(4), pickle.BINPUT: _put(1), pickle.LONG_BINPUT: _put(4),
    pickle.GLOBAL: _Walk.name, pickle.REDUCE: _Walk.call, pickle.NEWOBJ: _Walk.call, pickle.BUILD: lambda walk: walk.pop(1),
    pickle.BINPERSID: _Walk.storage,
}.items()}
