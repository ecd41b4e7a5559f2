"""Files that `torch.save` wrote, read with no code run from them."""

import os
import pickle
import struct
import zipfile
from functools import cached_property
from pathlib import Path

import torch

from .errors import UNetFileError, shorten
from .on_disk import DTYPES, no_model, open_regular
from .pickle_check import CUT, OBJECTS, Refused, check_archive, check_before_1_6

ZIPPED, BEFORE_1_6 = b"PK\x03", b"\x80"  # how a pickled PyTorch file begins: since PyTorch 1.6, and before
DAMAGED = (  # what reading a damaged pickle ends with: its bytes are instructions, and any of them may fail
    pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError, AttributeError, ValueError, struct.error,
    AssertionError, OverflowError,
)


class PickledFile:
    """A file that `torch.save` wrote, used as an open safetensors file; of what is in it only tensors under names count.

    No code in it is run. Raises UNetFileError where it cannot be read.
    """

    def __init__(self, path: Path):
        size = _check(path)
        self.path = path
        self.mapped = zipfile.is_zipfile(path)
        self.outlines = _tensors(unpickled(path, "meta"))
        for name, outline in self.outlines.items():
            if outline.numel() * outline.element_size() > size:  # a few values that stand for many
                raise unreadable_pickle(path, f"its tensor {shorten(name)} is larger than the file")

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Mapped from the file; read into memory where it is older than PyTorch 1.6."""
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
    """What a file's header would say of a tensor."""

    def __init__(self, outline: torch.Tensor):
        self.outline = outline

    def get_shape(self) -> list[int]:
        return list(self.outline.shape)

    def get_dtype(self) -> str:
        return next((name for name, dtype in DTYPES.items() if dtype == self.outline.dtype), str(self.outline.dtype))


def unpickled(path: Path, device: str):
    """What a pickled file holds, with its tensors on `device` (mapped where it can be); raises UNetFileError where unreadable.

    For files that `PickledFile` has looked through.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except DAMAGED as error:
        code = "Unsupported global" in str(error) or "Unsupported class" in str(error)
        raise unreadable_pickle(path, OBJECTS if code else CUT) from None


def unreadable_pickle(path: Path, reason: str) -> UNetFileError:
    """The error for a pickled PyTorch file that cannot be read; `reason` in a few words."""
    return UNetFileError(
        f"{path.name} cannot be read as a PyTorch file ({reason}). Download it again, or take the .safetensors version."
    )


def _check(path: Path) -> int:
    """The size of the file; raises UNetFileError where it is no file that PyTorch and hosts can be given."""
    with open_regular(path) as file:
        head = file.read(32)
        reason = no_model(path, head)
        if reason is not None:
            raise UNetFileError(f"{path.name}: {reason}")
        file.seek(0)
        try:
            if head.startswith(ZIPPED):
                check_archive(file)
            elif head.startswith(BEFORE_1_6):
                check_before_1_6(file)
            else:
                raise Refused("it begins as another kind of file")
        except Refused as refused:
            raise unreadable_pickle(path, str(refused)) from None
        return os.fstat(file.fileno()).st_size


def _tensors(found) -> dict[str, torch.Tensor]:
    """The tensors under names in what was pickled, which may keep them as its `state_dict` or under the only name in it."""
    if not isinstance(found, dict):
        return {}
    inner = next(iter(found.values())) if len(found) == 1 else found.get("state_dict")
    state = inner if isinstance(inner, dict) else found
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
