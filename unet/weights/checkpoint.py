"""Reading a UNet or ControlNet out of a file: tensor by tensor, every key accounted for."""

import functools
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..config import UNetConfig
from ..controlnet import ControlNetConfig, SVDControlNet
from ..controlnext import ControlNeXt, ControlNeXtConfig
from ..model import UNetModel
from .controlnet_file import head_width_next_to, is_svd_controlnet, read_controlnet_config
from .controlnext_file import controlnext_names, is_controlnext, read_controlnext_config
from .detect import detect
from .diffusers_folder import schedule_of
from .diffusers_names import to_ldm
from .errors import UNetFileError, shorten
from .files import check_dtypes, open_any, open_files, shapes_and_dtypes_of, shapes_of
from .markers import MARKERS
from .network_file import Checkpoint, ControlNetFile, ControlNeXtFile
from .on_disk import Stamps, stamps_of
from .scales import (
    Quantized,
    belonging,
    check_quantized,
    find_quantized,
    network_shapes,
    refuse_scales,
    refuse_unreadable,
)
from .shards import missing_part, weight_files


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a file and detects which UNet is in it, reading its header only.

    It may be a safetensors or pickled file, an index of shards or one of these, or a folder of diffusers' layout. Raises
    UNetFileError, which names it, where it is none of these, holds no UNet of the family, or where keys of the UNet are missing,
    have another shape, or a dtype that weights do not have.
    """
    opened = _open(path)
    weights = next(iter(opened.stamps))
    with _named(opened.path):
        refuse_unreadable(opened.shapes)
        quantized = find_quantized(opened.file, opened.dtypes, opened.metadata)
        opened.shapes, scales = network_shapes(opened.shapes, quantized), belonging(quantized, opened.shapes)
        plain = {name: shape for name, shape in opened.shapes.items() if name not in scales}
        config, family, names = detect(plain, opened.metadata, weights)
        found = _account(opened, names, expected_shapes(config), "UNet", quantized)
        schedule = schedule_of(weights)
    quantized = {name: quantized[on_disk] for name, on_disk in found["names"].items() if on_disk in quantized}
    return Checkpoint(**vars(opened), **found, config=config, family=family, schedule=schedule, quantized=quantized)


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
        found = _account(opened, names, expected_shapes(config, SVDControlNet), "ControlNet")
    return ControlNetFile(**vars(opened), **found, config=config)


def open_controlnext(path: str | Path) -> ControlNeXtFile:
    """Opens a file with a ControlNeXt-SVD as its authors publish it, which may be pickled; raises as `open_checkpoint`."""
    opened = _open(path)
    with _named(opened.path):
        if not is_controlnext(opened.shapes):
            raise UNetFileError("it holds no ControlNeXt (expected embedding.*, down_res.*, down_sample.* and mid_convs.*).")
        names = controlnext_names(opened.shapes)
        config = read_controlnext_config({name: opened.shapes[on_disk] for name, on_disk in names.items()})
        found = _account(opened, names, expected_shapes(config, ControlNeXt), "ControlNeXt")
    return ControlNeXtFile(**vars(opened), **found, config=config)


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
    stamps: Stamps
    file: object
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]


def _open(path: str | Path) -> _Opened:
    path = Path(path)
    files = weight_files(path)
    stamps = stamps_of(files)
    file = open_files(path, files)
    shapes, dtypes = shapes_and_dtypes_of(file)
    return _Opened(path=path, stamps=stamps, file=file, shapes=shapes, dtypes=dtypes, metadata=file.metadata() or {})


@contextmanager
def _named(path: Path):
    """Puts the file's name before what a UNetFileError says, or before that it is a part without the others."""
    try:
        yield
    except UNetFileError as error:
        raise UNetFileError(f"{path.name}: {missing_part(path) or error}") from None


def _account(
    opened: _Opened, names, expected, kind: str, quantized: Mapping[str, Quantized] = {},  # noqa: B006  # never changed
) -> dict[str, Any]:
    """What a `NetworkFile` has of its network: names, shapes that are stored otherwise, what is not used.

    `quantized`: by their names in the file, weights that are stored with scales. Raises UNetFileError where anything is missing,
    of another shape or of another dtype.
    """
    unexpected = sorted(names.keys() - expected.keys() - set(MARKERS))
    refuse_scales(unexpected)
    used = {name: on_disk for name, on_disk in names.items() if name in expected}
    check_dtypes(opened.dtypes, [on_disk for on_disk in used.values() if on_disk not in quantized])
    for on_disk in used.values():
        if on_disk in quantized:
            check_quantized(on_disk, quantized[on_disk], opened.shapes, opened.dtypes)
    reshaped = {
        name: expected[name] for name, on_disk in used.items()
        if opened.shapes[on_disk] != expected[name] and _is_reshaped(opened.shapes[on_disk], expected[name])
    }
    check_keys({name: opened.shapes[on_disk] for name, on_disk in used.items()} | reshaped, expected, kind)
    return {"names": {name: used[name] for name in expected}, "reshaped": reshaped, "unexpected": unexpected}


def _is_reshaped(found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Are these the same values in the same order? So tools store a linear layer as a 1x1 convolution, and the other way round.

    GGUF, which has four dimensions at most, has the first two of five as one.
    """
    if len(expected) == 5:
        return found == (expected[0] * expected[1], *expected[2:])
    return min(len(found), len(expected)) == 2 and found[:2] == expected[:2] and set(found[2:] + expected[2:]) == {1}


def load_unet(path: str | Path, *, operations=nn, dtype: torch.dtype | None = None, device="cpu") -> UNetModel:
    """The UNet in a file, in memory and ready to run; `dtype` None keeps the file's."""
    checkpoint = open_checkpoint(path)
    model = UNetModel(checkpoint.config, operations=operations, dtype=dtype or checkpoint.dtype(), device="meta")
    model.load_state_dict(checkpoint.state_dict(model.dtype), assign=True)
    return model.requires_grad_(False).eval().to(device)


@functools.lru_cache(maxsize=16)  # a file is looked at when it is chosen, when the prompt is queued, and when it is loaded
def expected_shapes(config: UNetConfig | ControlNetConfig | ControlNeXtConfig, network=UNetModel) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor of this network; raises UNetFileError where none can have these widths."""
    try:
        model = network(config, device="meta")
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise UNetFileError(f"no network has the widths of its tensors ({shorten(error)}): the file is damaged.") from None
    return MappingProxyType({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})


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
