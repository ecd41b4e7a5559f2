"""Saving residuals and networks in the host's output folder, next to what others save there."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import comfy.model_management as management
import folder_paths
from comfy.cli_args import args
from comfy.utils import ProgressBar

from ....unet import ControlResiduals, UNetFileError, write_residuals
from ....unet.weights.network_writer import FilePlan, take_name, written_part
from ....unet.weights.save_plan import GGUF, Wanted
from ..model.saved_weights import SavedNetwork
from .model_files import quoted, real_path_in

ENDINGS = {GGUF: ".gguf"}  # of safetensors: .safetensors


def save_residuals(node: str, residuals: ControlResiduals, prefix: str, metadata: Mapping[str, str]) -> tuple[str, str]:
    """Writes `<prefix>_<number>_.safetensors`; returns its name and its folder in the output folder.

    Raises ValueError, which names `node` and the prefix, where the disk or the system does not let it be written.
    """
    with _named(node, prefix):
        folder, name, number, subfolder = _place(node, prefix)
        whole = Path(folder) / f"{uuid4().hex}.part"
        try:
            write_residuals(whole, residuals, metadata)
            return _take_free_name(whole, name, number, ".safetensors"), subfolder
        finally:
            whole.unlink(missing_ok=True)


def save_network(node: str, model, prefix: str, wanted: Wanted, metadata: Mapping[str, str]) -> tuple[str, str]:
    """Writes the network of a MODEL with its LoRAs as `<prefix>_<number>_.safetensors` or `.gguf`, one tensor at a time.

    Returns its name and its folder in the output folder. Raises ValueError, which names `node` and the prefix, where the MODEL
    is none of the family, its weights do not fit the type, or the disk or the system does not let it be written.
    """
    with _named(node, prefix):
        saved = SavedNetwork(model, metadata)
        plan = FilePlan(saved.network, wanted)
        folder, name, number, subfolder = _place(node, prefix)
        bar = ProgressBar(plan.size)

        def written(size: int) -> None:
            management.throw_exception_if_processing_interrupted()
            bar.update_absolute(size)

        with written_part(Path(folder), plan, saved.values, written) as part:
            file = _take_free_name(part, name, number, ENDINGS.get(wanted.container, ".safetensors"))
    if plan.left_out:
        logging.warning("%s: %s is saved without %s, too long for a GGUF file.", node, file, ", ".join(plan.left_out))
    logging.info("%s: %s, %.3f GB", node, Path(subfolder) / file, plan.size / 1e9)
    return file, subfolder


def file_metadata(hidden) -> dict[str, str]:
    """The pack's version, and the prompt and workflow as the host's own nodes write them, so that the file can be dropped into
    the editor; `hidden` is a node's."""
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    version = {"temporal_unet.version": re.findall(r'^version = "(.+)"', text, re.MULTILINE)[0]}
    if args.disable_metadata or hidden.prompt is None:
        return version
    texts = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return version | {name: json.dumps(value) for name, value in texts.items()}


def _place(node: str, prefix: str) -> tuple[str, str, int, str]:
    """The folder, name, number and subfolder that the host gives a file that is saved under `prefix`.

    Raises ValueError, which names `node`, where that leads out of the output folder: the host's own message tells where the folder
    lies, and 0.16 follows links.
    """
    try:
        real_path_in("output", f"{os.path.normpath(prefix)}_")
    except ValueError as error:
        raise ValueError(f"{node}: filename_prefix {quoted(prefix)} {error}. Name a place in the output folder.") from None
    folder, name, number, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return folder, name, number, subfolder


@contextmanager
def _named(node: str, prefix: str) -> Iterator[None]:
    """Names the node and the prefix in what goes wrong with a file."""
    try:
        yield
    except UNetFileError as error:
        raise ValueError(f"{node}: {quoted(prefix)} is not saved: {error}") from None
    except OSError as error:
        raise ValueError(
            f"{node}: {quoted(prefix)} cannot be saved in the output folder ({error.strerror or error}): free space there, make "
            f"it writable, or change filename_prefix."
        ) from None


def _take_free_name(path: Path, name: str, number: int, ending: str) -> str:
    """Gives a file the first free name from `number` on: another server may have taken the host's number meanwhile."""
    while True:
        target = path.with_name(f"{name}_{number:05}_{ending}")
        try:
            take_name(path, target)
        except FileExistsError:
            number += 1
        else:
            return target.name
