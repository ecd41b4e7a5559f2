"""GGUF files, used as open safetensors files."""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import UNetFileError
from .ggml_types import PackedTensor
from .gguf_header import Entry, Header, Refused, read_header
from .on_disk import open_regular


class GGUFFile:
    """An open GGUF file. Its tensors stay mapped from it; raises UNetFileError where it cannot be read.

    `dialect` is "comfy" or "sdcpp": see `gguf_header.py`.
    """

    def __init__(self, path: Path):
        with open_regular(path) as file:
            self._header = _header(path, file)
            self._data = torch.frombuffer(_mapped(path, file), dtype=torch.uint8)

    @property
    def dialect(self) -> str:
        return self._header.dialect

    def keys(self):
        return self._header.tensors.keys()

    def metadata(self) -> dict[str, str]:
        return dict(self._header.metadata)

    def get_slice(self, name: str) -> "GGUFSlice":
        return GGUFSlice(self._header.tensors[name])

    def get_packed(self, name: str) -> PackedTensor:
        """The tensor as it is stored, mapped."""
        entry = self._header.tensors[name]
        return PackedTensor(self._data[entry.start:entry.start + entry.size], entry.kind, entry.shape)

    def get_tensor(self, name: str) -> torch.Tensor:
        """The tensor's values: fp32, dequantized, where it is quantized; else in its own dtype, mapped."""
        packed = self.get_packed(name)
        dtype = packed.kind.plain
        if dtype is None:
            return packed.dequantize()
        aligned = packed.data.storage_offset() % dtype.itemsize == 0
        return (packed.data if aligned else packed.data.clone()).view(dtype).reshape(packed.shape)


@dataclass(frozen=True)
class GGUFSlice:
    """What the header says of a tensor."""

    entry: Entry

    def get_shape(self) -> list[int]:
        return list(self.entry.shape)

    def get_dtype(self) -> str:
        """The ggml type's name; of plain ones it is safetensors' name, too."""
        return self.entry.kind.name


def _header(path: Path, file) -> Header:
    try:
        return read_header(file)
    except Refused as refused:
        raise UNetFileError(f"{path.name}: it cannot be read as a GGUF file ({refused}). {refused.advice}") from None


def _mapped(path: Path, file) -> mmap.mmap:
    """The bytes of the file; what is written to them stays in memory."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:  # larger than memory, where the system allows no more
        size = os.fstat(file.fileno()).st_size / 2**30
        raise UNetFileError(
            f"{path.name}: its {size:,.1f} GiB cannot be mapped ({error.strerror}). Free memory, or choose a smaller file."
        ) from None
