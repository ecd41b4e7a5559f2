"""Reading a UNet or ControlNet out of a file: tensor by tensor, every key accounted for."""

import os
from collections.abc import Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import Family, UNetConfig
from ..controlnet import ControlNetConfig, SVDControlNet
from ..controlnext import ControlNeXt, ControlNeXtConfig
from ..model import UNetModel
from .controlnet_file import head_width_next_to, is_svd_controlnet, read_controlnet_config
from .controlnext_file import controlnext_names, is_controlnext, read_controlnext_config
from .detect import detect
from .diffusers_names import to_ldm
from .errors import UNetFileError, shorten
from .files import check_dtypes, is_mapped, main_dtype, open_any, open_file, shapes_and_dtypes_of, shapes_of
from .on_disk import FileStamp, changed_in_place, open_regular
from .scales import (
    Quantized,
    belonging,
    check_quantized,
    dequantized,
    find_quantized,
    network_shapes,
    refuse_scales,
    refuse_unreadable,
)


@dataclass(kw_only=True)
class NetworkFile:
    """An open file with a network in it. Tensors are read, or only mapped, when they are asked for."""

    path: Path
    stamp: FileStamp  # of the file when it was opened
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor in the file; of quantized weights those that they stand for
    dtypes: Mapping[str, str]  # of every tensor in the file, as safetensors names them
    names: Mapping[str, str]  # the network's own key names to those in the file
    metadata: Mapping[str, str]
    unexpected: list[str] = field(default_factory=list)  # tensors under the network's prefix that it does not use
    quantized: Mapping[str, Quantized] = field(default_factory=dict)  # weights stored with scales, by their own key names
    file: Any = None  # an open safetensors file, or a PickledFile with the same methods

    @property
    def parameters(self) -> int:
        return sum(torch.Size(self.shapes[self.names[name]]).numel() for name in self.names)

    def tensor(self, on_disk: str) -> torch.Tensor:
        """A tensor by its name in the file, mapped from it (no copy).

        A mapped tensor changes with the file, and reading it ends the process where the file was cut (SIGBUS).
        """
        return self.file.get_tensor(on_disk)

    def changed_in_place(self) -> bool:
        """Was the file written to or cut since it was opened? Not where another has taken its name: see `changed_in_place`."""
        return changed_in_place(self.path, self.stamp)

    def dtype(self) -> torch.dtype:
        """The dtype that most of the network's values have in the file, quantized ones left out."""
        plain = {on_disk: self.shapes[on_disk] for name, on_disk in self.names.items() if name not in self.quantized}
        return main_dtype(self.file, plain)

    def state_dict(
        self, dtype: torch.dtype | None = None, mapped: bool = False, stored: Collection[str] = (),
    ) -> dict[str, torch.Tensor]:
        """The network's tensors under its own key names, as `dtype` (None = as in the file), read one by one.

        Quantized weights come dequantized, but those named in `stored` as they are in the file, each with its scales.

        Each is a copy in memory, which stays as it is whatever happens to the file. With `mapped`, tensors that are in that
        dtype already stay mapped from the file, which takes no memory: they change with it (see `changed_in_place`). Mix
        factors and the like are kept in fp32. Raises UNetFileError where the file was changed since it was opened.
        """
        if self.changed_in_place():
            raise UNetFileError(f"{self.path.name}: it was changed after it was opened. Load it again once it is written.")
        copy = not mapped and is_mapped(self.file)
        state = {}
        for name, on_disk in self.names.items():
            if name in stored:
                layer = name.removesuffix("weight")
                tensors = {name: on_disk, **{f"{layer}{kind}": scale for kind, scale in self.quantized[name].scales.items()}}
                state.update({key: self.tensor(tensor).to(None, copy=copy) for key, tensor in tensors.items()})
                continue
            if name in self.quantized:
                state[name] = dequantized(on_disk, self.quantized[name], self.tensor).to(dtype or torch.float32)
                continue
            wanted = torch.float32 if name.endswith((".mix_factor", "strength.scale")) else dtype
            state[name] = self.tensor(on_disk).to(wanted, copy=copy)
        return state


@dataclass(kw_only=True)
class Checkpoint(NetworkFile):
    """An open file with a UNet in it."""

    config: UNetConfig
    family: Family


@dataclass(kw_only=True)
class ControlNetFile(NetworkFile):
    """An open file with an SVD ControlNet in it, temporal or spatial only."""

    config: ControlNetConfig


@dataclass(kw_only=True)
class ControlNeXtFile(NetworkFile):
    """An open file with a ControlNeXt of SVD in it."""

    config: ControlNeXtConfig


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a file and detects which UNet is in it, reading its header only.

    Raises UNetFileError, which names the file, where it is no safetensors file, holds no UNet of the family, or where
    keys of the UNet are missing, have another shape, or a dtype that weights do not have.
    """
    opened = _open(path, open_file)
    with _named(opened.path):
        refuse_unreadable(opened.shapes)
        found = find_quantized(opened.file, opened.dtypes, opened.metadata)
        opened.shapes, scales = network_shapes(opened.shapes, found), belonging(found, opened.shapes)
        config, family, names = detect({name: opened.shapes[name] for name in opened.shapes if name not in scales}, opened.metadata)
        names, unexpected = _account(opened, names, expected_shapes(config), "UNet", found)
    quantized = {name: found[on_disk] for name, on_disk in names.items() if on_disk in found}
    return Checkpoint(
        **vars(opened), config=config, family=family, names=names, unexpected=unexpected, quantized=quantized,
    )


def open_controlnet(path: str | Path) -> ControlNetFile:
    """Opens a file with an SVD ControlNet in the public layout, reading its header only; raises as `open_checkpoint`.

    It may be pickled, as many ControlNets are published.
    """
    opened = _open(path)
    with _named(opened.path):
        if not is_svd_controlnet(opened.shapes):
            raise UNetFileError("it holds no SVD ControlNet (expected controlnet_mid_block.* and down_blocks.*).")
        names = to_ldm(opened.shapes)
        metadata = {**head_width_next_to(opened.path), **opened.metadata}
        config = read_controlnet_config({name: opened.shapes[on_disk] for name, on_disk in names.items()}, metadata)
        names, unexpected = _account(opened, names, expected_shapes(config, SVDControlNet), "ControlNet")
    return ControlNetFile(**vars(opened), config=config, names=names, unexpected=unexpected)


def open_controlnext(path: str | Path) -> ControlNeXtFile:
    """Opens a file with a ControlNeXt-SVD as its authors publish it, which may be pickled; raises as `open_checkpoint`."""
    opened = _open(path)
    with _named(opened.path):
        if not is_controlnext(opened.shapes):
            raise UNetFileError("it holds no ControlNeXt (expected embedding.*, down_res.*, down_sample.* and mid_convs.*).")
        names = controlnext_names(opened.shapes)
        config = read_controlnext_config({name: opened.shapes[on_disk] for name, on_disk in names.items()})
        names, unexpected = _account(opened, names, expected_shapes(config, ControlNeXt), "ControlNeXt")
    return ControlNeXtFile(**vars(opened), config=config, names=names, unexpected=unexpected)


def find_controlnet(path: str | Path) -> type[nn.Module] | None:
    """Which of our networks a file is for: SVDControlNet, ControlNeXt, or None; reads its header only.

    Raises UNetFileError where the file cannot be read.
    """
    shapes = shapes_of(open_any(Path(path)))
    if is_svd_controlnet(shapes):
        return SVDControlNet
    return ControlNeXt if is_controlnext(shapes) else None


@dataclass(kw_only=True)
class _Opened:
    """What a `NetworkFile` has of any file."""

    path: Path
    stamp: FileStamp
    file: object
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]


def _open(path: str | Path, opener=open_any) -> _Opened:
    path = Path(path)
    with open_regular(path) as file:
        stamp = FileStamp.of(os.fstat(file.fileno()))
    file = opener(path)
    shapes, dtypes = shapes_and_dtypes_of(file)
    return _Opened(path=path, stamp=stamp, file=file, shapes=shapes, dtypes=dtypes, metadata=file.metadata() or {})


@contextmanager
def _named(path: Path):
    """Puts the file's name before what a UNetFileError says."""
    try:
        yield
    except UNetFileError as error:
        raise UNetFileError(f"{path.name}: {error}") from None


def _account(opened: _Opened, names, expected, kind: str, quantized: Mapping[str, Quantized] = {}):  # noqa: B006  # never changed
    """(names of what the network needs, what it does not use); raises where anything is missing, misshaped or of another dtype.

    `quantized`: by their names in the file, weights that are stored with scales.
    """
    unexpected = sorted(names.keys() - expected.keys())
    refuse_scales(unexpected)
    used = {name: on_disk for name, on_disk in names.items() if name in expected}
    check_dtypes(opened.dtypes, [on_disk for on_disk in used.values() if on_disk not in quantized])
    for on_disk in used.values():
        if on_disk in quantized:
            check_quantized(on_disk, quantized[on_disk], opened.shapes, opened.dtypes)
    check_keys({name: opened.shapes[on_disk] for name, on_disk in used.items()}, expected, kind)
    return {name: used[name] for name in expected}, unexpected


def load_unet(path: str | Path, *, operations=nn, dtype: torch.dtype | None = None, device="cpu") -> UNetModel:
    """The UNet in a safetensors file, in memory and ready to run; `dtype` None keeps the file's."""
    checkpoint = open_checkpoint(path)
    model = UNetModel(checkpoint.config, operations=operations, dtype=dtype or checkpoint.dtype(), device="meta")
    model.load_state_dict(checkpoint.state_dict(model.dtype), assign=True)
    return model.requires_grad_(False).eval().to(device)


def expected_shapes(config: UNetConfig | ControlNetConfig | ControlNeXtConfig, network=UNetModel) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of this network; raises UNetFileError where none can have these widths."""
    try:
        model = network(config, device="meta")
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise UNetFileError(f"no network has the widths of its tensors ({shorten(error)}): the file is damaged.") from None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_keys(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], kind: str = "UNet"
) -> None:
    """Raises UNetFileError where keys are missing or misshaped: counts them and names the first three of each."""
    missing = [name for name in expected if name not in found]
    misshaped = [
        f"{name} is {shorten(list(found[name]))} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for names, what in ((missing, "missing"), (misshaped, "of another shape"))
        if names
    ]
    if faults:
        raise UNetFileError(
            f"of the {len(expected)} tensors that this {kind} needs, {' and '.join(faults)}. The file is damaged or a part "
            f"of another model; get it again from its source."
        )
