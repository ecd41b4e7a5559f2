"""Saving residuals in the host's output folder, next to what others save there."""

import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import folder_paths

from ....unet import ControlResiduals, write_residuals
from .model_files import quoted


def save_residuals(node: str, residuals: ControlResiduals, prefix: str, metadata: Mapping[str, str]) -> tuple[str, str]:
    """Writes `<prefix>_<number>_.safetensors`; returns its name and its folder in the output folder.

    Raises ValueError, which names `node` and the prefix, where the disk or the system does not let it be written.
    """
    try:
        folder, name, number, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
        whole = Path(folder) / f"{uuid4().hex}.part"
        try:
            write_residuals(whole, residuals, metadata)
            return _move_to_free_name(whole, name, number), subfolder
        finally:
            whole.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"{node}: {quoted(prefix)} cannot be saved in the output folder ({error.strerror or error}): free space there, make "
            f"it writable, or change filename_prefix."
        ) from None


def _move_to_free_name(path: Path, name: str, number: int) -> str:
    """Gives a file the first free name from `number` on: another server may have taken the host's number meanwhile."""
    while True:
        target = path.with_name(f"{name}_{number:05}_.safetensors")
        try:
            target.open("xb").close()  # one process alone can make it
        except FileExistsError:
            number += 1
        else:
            os.replace(path, target)
            return target.name
