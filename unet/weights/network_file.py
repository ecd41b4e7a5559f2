"""An open file with a network in it: what it holds, and its tensors under the network's own names."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..config import Family, UNetConfig
from ..controlnet import ControlNetConfig
from ..controlnext import ControlNeXtConfig
from .diffusers_folder import Schedule
from .errors import UNetFileError
from .files import is_mapped, main_dtype
from .ggml_types import PackedTensor, is_quantized
from .gguf_file import GGUFFile
from .on_disk import Stamps, changed_in_place
from .scales import Quantized, dequantized


@dataclass(kw_only=True)
class NetworkFile:
    """An open file with a network in it. Tensors are read, or only mapped, when they are asked for."""

    path: Path  # as it was asked for: a file, an index of shards, or a folder of diffusers' layout
    stamps: Stamps  # of the files that the tensors are in, when they were opened
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor in the file; of quantized weights those that they stand for
    dtypes: Mapping[str, str]  # of every tensor in the file, as safetensors names them
    names: Mapping[str, str]  # the network's own key names to those in the file
    metadata: Mapping[str, str]
    reshaped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # shapes of tensors that are stored in another
    unexpected: list[str] = field(default_factory=list)  # tensors under the network's prefix that it does not use
    quantized: Mapping[str, Quantized] = field(default_factory=dict)  # weights stored with scales, by their own key names
    file: Any = None  # an open safetensors file, or another with the same methods: see `open_any`

    @property
    def parameters(self) -> int:
        return sum(torch.Size(self.shapes[self.names[name]]).numel() for name in self.names)

    def tensor(self, on_disk: str) -> torch.Tensor:
        """A tensor by its name in the file, mapped from it (no copy).

        A mapped tensor changes with the file, and reading it ends the process where the file was cut (SIGBUS).
        """
        return self.file.get_tensor(on_disk)

    def changed_in_place(self) -> bool:
        """Was a file written to or cut since it was opened? Not where another has taken its name: see `changed_in_place`."""
        return any(changed_in_place(path, stamp) for path, stamp in self.stamps.items())

    def dtype(self) -> torch.dtype:
        """The dtype that most of the network's values have in the file, quantized ones left out."""
        return main_dtype(self.file, {
            on_disk: self.shapes[on_disk] for name, on_disk in self.names.items()
            if name not in self.quantized and not is_quantized(self.dtypes[on_disk])
        })

    @property
    def quantization(self) -> dict[str, int]:
        """How many of the network's tensors are quantized without scales of their own, by type, the most first."""
        types = (self.dtypes[on_disk] for on_disk in self.names.values())
        return dict(Counter(filter(is_quantized, types)).most_common())

    @property
    def dialect(self) -> str | None:
        """Which of its dialects a GGUF file is written in: see `gguf_header.py`."""
        return self.file.dialect if isinstance(self.file, GGUFFile) else None

    def state_dict(
        self, dtype: torch.dtype | None = None, mapped: bool = False, stored: Collection[str] = (), packed: bool = False,
        stored_mapped: bool = False,
    ) -> dict[str, Any]:
        """The network's tensors under its own key names, as `dtype` (None = as in the file), read one by one.

        Quantized weights come dequantized (where `dtype` is None in fp32), but those named in `stored` as they are in the file,
        each with its scales, and with `packed` those of a GGUF file that have more than one dimension as PackedTensors.

        Each is a copy in memory, which stays as it is whatever happens to the file. With `mapped`, tensors that are in that
        dtype already stay mapped from the file, which takes no memory: they change with it (see `changed_in_place`); with
        `stored_mapped` the quantized ones do that come as they are in the file. Mix factors and the like are kept in fp32.
        Raises UNetFileError where the file was changed since it was opened.
        """
        if self.changed_in_place():
            raise UNetFileError(f"{self.path.name}: it was changed after it was opened. Load it again once it is written.")
        copy = not mapped and is_mapped(self.file)
        copy_stored = copy and not stored_mapped
        state: dict[str, Any] = {}
        for name, on_disk in self.names.items():
            if name in stored:
                layer, tensor = name.removesuffix("weight"), self.tensor(on_disk).to(None, copy=copy_stored)
                scales = self.quantized[name].scales.items()
                state.update({f"{layer}{kind}": self.tensor(scale).to(None, copy=copy) for kind, scale in scales})
            elif is_quantized(self.dtypes[on_disk]):
                state[name] = self._unpacked(name, dtype, copy_stored, packed)
                continue
            elif name in self.quantized:
                tensor = dequantized(on_disk, self.quantized[name], self.tensor).to(dtype or torch.float32)
            else:
                wanted = torch.float32 if name.endswith((".mix_factor", "strength.scale")) else dtype
                tensor = self.tensor(on_disk).to(wanted, copy=copy)
            state[name] = tensor.reshape(self.reshaped[name]) if name in self.reshaped else tensor
        return state

    def _unpacked(self, name: str, dtype: torch.dtype | None, copy: bool, packed: bool) -> torch.Tensor | PackedTensor:
        found = self.file.get_packed(self.names[name])
        found = replace(found, shape=self.reshaped.get(name, found.shape))
        if not packed or len(found.shape) == 1:
            return found.dequantize(dtype or torch.float32)
        return replace(found, data=found.data.clone()) if copy else found


@dataclass(kw_only=True)
class Checkpoint(NetworkFile):
    """An open file with a UNet in it."""

    config: UNetConfig
    family: Family
    schedule: Schedule | None = None  # how it was trained, where the folder that it lies in says that


@dataclass(kw_only=True)
class ControlNetFile(NetworkFile):
    """An open file with an SVD ControlNet in it, temporal or spatial only."""

    config: ControlNetConfig


@dataclass(kw_only=True)
class ControlNeXtFile(NetworkFile):
    """An open file with a ControlNeXt of SVD in it."""

    config: ControlNeXtConfig
