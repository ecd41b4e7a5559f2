"""Opening files of weights, safetensors or pickled, and saying in words why one cannot be read."""

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .detect import UNetFileError

SAFETENSORS = (".safetensors", ".sft")  # endings; a file with another one is taken for a pickled one
DTYPES = {  # as safetensors names them
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}


def open_any(path: Path):
    """The open file, told by its ending: a safetensors file, or a PickledFile; raises UNetFileError as `open_file`."""
    return open_file(path) if path.suffix.lower() in SAFETENSORS else PickledFile(path)


def shapes_of(file) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in an open file; reads its header only."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def main_dtype(file, shapes: Mapping[str, tuple[int, ...]]) -> torch.dtype:
    """The dtype that most of the numbers in these tensors have."""
    counts: dict[torch.dtype, int] = {}
    for name, shape in shapes.items():
        dtype = DTYPES.get(file.get_slice(name).get_dtype(), torch.float32)
        counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    return max(counts, key=counts.get)


class PickledFile:
    """A file that `torch.save` wrote, used as an open safetensors file; of what is in it only tensors under names count.

    No code in it is run. Raises UNetFileError where it cannot be read.
    """

    def __init__(self, path: Path):
        _check_pickled(path)
        self.path = path
        self.outlines = _tensors(unpickled(path, "meta"))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Mapped from the file; read where it is older than PyTorch 1.6."""
        return _tensors(unpickled(self.path, "cpu"))

    def keys(self):
        return self.outlines.keys()

    def metadata(self) -> None:
        return None

    def get_tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def get_slice(self, name: str) -> "PickledSlice":
        return PickledSlice(self.outlines[name])


class PickledSlice:
    """What a file's header would tell of a tensor."""

    def __init__(self, outline: torch.Tensor):
        self.outline = outline

    def get_shape(self) -> list[int]:
        return list(self.outline.shape)

    def get_dtype(self) -> str:
        return next((name for name, dtype in DTYPES.items() if dtype == self.outline.dtype), str(self.outline.dtype))


def _tensors(found) -> dict[str, torch.Tensor]:
    """The tensors under names in what was pickled, which may keep them as its `state_dict` or under the only name in it."""
    if not isinstance(found, dict):
        return {}
    inner = next(iter(found.values())) if len(found) == 1 else found.get("state_dict")
    state = inner if isinstance(inner, dict) else found
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


DAMAGED = (  # what reading a damaged pickle ends with: its bytes are instructions, and any of them may fail
    pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError, AttributeError, ValueError, struct.error,
    AssertionError,
)


def unpickled(path: Path, device: str):
    """What a pickled file holds, with its tensors on `device` (mapped where it can be); raises UNetFileError where unreadable."""
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except DAMAGED as error:
        code = "Unsupported global" in str(error) or "Unsupported class" in str(error)
        reason = "it is damaged, or holds Python objects beside tensors" if code else "it is damaged or cut off"
        raise unreadable_pickle(path, reason) from None


def open_file(path: Path, again: str = "Download it again"):
    """The open safetensors file; raises UNetFileError, which names it, where it is missing, damaged or of another kind.

    `again`: how such a file is to be had anew, for the message.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UNetFileError(f"{path.name}: {what}; expected a .safetensors file with a UNet.")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise UNetFileError(f"{path.name}: {_explain(path, error, again)}") from None


def _explain(path: Path, error: SafetensorError, again: str) -> str:
    """Why a file is no safetensors file, in words that say what to do."""
    size, head = path.stat().st_size, _head(path)
    if head[8:9] == b"{" and _is_cut(path, size):
        return f"it is cut off ({size:,} bytes found; {error}). {again}."
    found = _no_model(path, head, again)
    if found is None and head.startswith(PICKLED):
        found = "it is a pickled PyTorch file (.ckpt, .pt); expected safetensors. Convert it, or use the host's loader."
    return found or f"it is not a safetensors file ({error}). {again}, or choose another file."


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


PICKLED = (b"PK\x03", b"\x80")  # how a pickled PyTorch file begins, since PyTorch 1.6 and before
NO_MODEL = (
    ((b"<!doc", b"<html", b"<?xml"),
     "it is a web page, not a model: the download went wrong. Download the {suffix} file itself."),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the model. Fetch the real file with `git lfs pull`."),
    (b"gguf", "it is a GGUF file; expected safetensors."),
)


def _no_model(path: Path, head: bytes, again: str = "Download it again") -> str | None:
    """Why a file that begins so is no model, whatever its ending, in words that say what to do; None where it may be one."""
    if not head:
        return f"it is empty. {again}."
    begin = head.lstrip().lower()
    return next((reason.format(suffix=path.suffix) for mark, reason in NO_MODEL if begin.startswith(mark)), None)


def _check_pickled(path: Path) -> None:
    """Raises UNetFileError where this cannot be a whole pickled PyTorch file, as its first bytes and its size tell."""
    head = _head(path)
    reason = _no_model(path, head)
    if reason is not None:
        raise UNetFileError(f"{path.name}: {reason}")
    if not head.startswith(PICKLED):
        raise unreadable_pickle(path, "it begins as another kind of file")
    if head.startswith(PICKLED[0]) and not zipfile.is_zipfile(path):
        raise unreadable_pickle(path, "it is cut off")


def unreadable_pickle(path: Path, reason: str) -> UNetFileError:
    """The error for a pickled PyTorch file that cannot be read; `reason` in a few words."""
    return UNetFileError(
        f"{path.name} cannot be read as a PyTorch file ({reason}). Download it again, or take the .safetensors version."
    )


def _is_cut(path: Path, size: int) -> bool:
    """Does the file end before its header, or the data that the header lists, is over?"""
    with path.open("rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        if 8 + header_size > size:
            return True
        try:
            header = json.loads(file.read(header_size))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError):
            return False
    return 8 + header_size + max(ends, default=0) > size
