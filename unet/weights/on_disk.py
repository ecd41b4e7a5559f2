"""What files of every kind have in common: opening them, what their first bytes say, detecting that one was changed."""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from .errors import UNetFileError, shorten

DTYPES = {  # that weights may have, as safetensors names them
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}

KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """The file `path`, links followed, open for reading.

    Raises UNetFileError, which names it, where it is no regular file (opening a pipe waits for whoever writes to it, and a
    device may never end) or cannot be opened.
    """
    _check_name(path)
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        file = open(path, "rb") if kind == stat.S_IFREG else None
    except FileNotFoundError:
        raise UNetFileError(f"{path.name}: no such file. Choose another, or put it there.") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise UNetFileError(f"{shorten(path.name)}: it cannot be opened ({reason}). Choose another file.") from None
    if file is None:
        raise UNetFileError(f"{path.name}: it is {KINDS.get(kind, 'of another kind')}, expected a file. Choose a file.")
    with file:
        yield file


def _check_name(path: Path) -> None:
    """Raises UNetFileError where the path is no UTF-8: neither safetensors nor PyTorch opens such a file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UNetFileError(f"{path.name}: its name, or that of a folder that it is in, is not UTF-8. Rename it.") from None


@dataclass(frozen=True)
class FileStamp:
    """What shows whether a file was written to since: the same file has another size or time then."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "FileStamp":
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


Stamps = Mapping[Path, FileStamp]  # of the files that something was read from


def stamps_of(files: Iterable[Path]) -> dict[Path, FileStamp]:
    """The stamp of each file; raises UNetFileError where one cannot be opened."""
    stamps = {}
    for path in files:
        with open_regular(path) as file:
            stamps[path] = FileStamp.of(os.fstat(file.fileno()))
    return stamps


def changed_in_place(path: Path, stamp: FileStamp) -> bool:
    """Was the file, which had this stamp, written to or cut? What is mapped from it changes, or ends the process, then.

    False where the name belongs to another file now, or to none: what is mapped from the old one stays as it was.
    """
    try:
        now = FileStamp.of(os.stat(path))
    except OSError:
        return False
    return (now.device, now.inode) == (stamp.device, stamp.inode) and now != stamp


NO_MODEL = (
    ((b"<!doc", b"<html", b"<?xml"),
     "it is a web page, not a model: the download went wrong. Download the {suffix} file itself."),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the model. Fetch the real file with `git lfs pull`."),
)


def no_model(path: Path, head: bytes, again: str = "Download it again") -> str | None:
    """Why a file that begins so is no model, whatever its ending, in words that say what to do; None where it may be one."""
    if not head:
        return f"it is empty. {again}."
    begin = head.lstrip().lower()
    return next((reason.format(suffix=path.suffix) for mark, reason in NO_MODEL if begin.startswith(mark)), None)
