"""A ControlNet's residuals as a value, and as a safetensors file with the tensors `controls.0`, `controls.1`, …"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .errors import UNetFileError, shorten
from .files import check_dtypes, open_file

NAME = re.compile(r"controls\.\d+")
EXPECTED = "expected controls.0, controls.1, … as Save ControlNet Residuals writes them"


@dataclass(frozen=True)
class ControlResiduals:
    """What a ControlNet adds to a UNet at one noise level.

    `controls`: [frames, c, h, w] each, in the order that `UNetModel.forward` takes (skips, then the middle); one frame
    serves all. `about`: what made them, as text under names.
    """

    controls: tuple[torch.Tensor, ...]
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return self.controls[0].shape[0]


def write_residuals(path: str | Path, residuals: ControlResiduals, metadata: Mapping[str, str] | None = None) -> None:
    """Writes the file `path` with `about` and `metadata` in its header; a half-written one never stands under the name.

    Raises OSError where it cannot be written.
    """
    tensors = {f"controls.{index}": control.contiguous().cpu() for index, control in enumerate(residuals.controls)}
    part = Path(path).with_name(f"{uuid4().hex}.part")  # other processes may be writing to the same path
    try:
        save_file(tensors, part, {**residuals.about, **(metadata or {}), "controls": str(len(tensors))})
        os.replace(part, path)
    except SafetensorError as error:  # the system's error, as text that may end with the path of a temporary file
        raise OSError(str(error).partition(" at path ")[0]) from None
    finally:
        part.unlink(missing_ok=True)


def read_residuals(path: str | Path) -> ControlResiduals:
    """The residuals in a file: all its tensors `controls.i`, of any float dtype; other tensors are ignored.

    They are copies in memory, which stay as they are whatever happens to the file. Raises UNetFileError, which names the
    file, where it is missing, damaged, or holds no usable residuals.
    """
    path = Path(path)
    file = open_file(path, "Save or download it again")
    try:
        controls = _controls(file)
    except UNetFileError as error:
        raise UNetFileError(f"{path.name}: {error}") from None
    return ControlResiduals(controls, file.metadata() or {})


def _controls(file) -> tuple[torch.Tensor, ...]:
    names = _names(file.keys())
    check_dtypes({name: file.get_slice(name).get_dtype() for name in names}, names)
    controls = tuple(_usable(name, file.get_slice(name).get_shape(), file) for name in names)
    for name, control in zip(names, controls, strict=True):
        if control.shape[0] != controls[0].shape[0]:
            raise UNetFileError(
                f"{name} holds {control.shape[0]} frames, expected {controls[0].shape[0]} as controls.0. Make the file again."
            )
    return controls


def _names(found: list[str]) -> list[str]:
    """The names of the residuals among these, in order."""
    numbered = {name for name in found if NAME.fullmatch(name)}
    if not numbered:
        some = ", ".join(map(shorten, found[:3])) or "nothing"
        raise UNetFileError(f"it holds no ControlNet residuals (found {some}); {EXPECTED}.")
    names = [f"controls.{index}" for index in range(len(numbered))]
    for name in names:
        if name not in numbered:
            following = min(numbered.difference(names), key=lambda name: (len(name), name))
            raise UNetFileError(
                f"{name} is missing (found {shorten(following)} next); {EXPECTED}. The file is damaged: make it again."
            )
    return names


def _usable(name: str, shape: list[int], file) -> torch.Tensor:
    if len(shape) != 4 or 0 in shape:
        raise UNetFileError(
            f"{name} is of shape {shorten(shape)}, expected [frames, channels, height, width]. Make the file again."
        )
    control = file.get_tensor(name)
    # fp8 and fp64 become fp32: few operations take them
    control = control.to(control.dtype if control.element_size() in (2, 4) else torch.float32, copy=True)
    if not torch.isfinite(control).all():
        raise UNetFileError(f"{name} holds NaN or infinite values, expected finite numbers. Make the residuals again.")
    return control
