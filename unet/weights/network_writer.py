"""Writing a network's file, tensor by tensor, and reading it back: in memory is one at a time."""

import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import torch

from .errors import UNetFileError
from .files import open_any
from .ggml_types import PackedTensor
from .gguf_file import GGUFFile
from .gguf_header import MOST_TEXT
from .gguf_writer import gguf_header, padded
from .save_plan import GGUF, Network, PlannedTensor, Wanted, kept_metadata, plan_tensors, safetensors_header


class FilePlan:
    """A file that is known but for its values: its header, its tensors, its size in bytes.

    `left_out`: the metadata that GGUF's readers do not take, since they are too long.
    """

    def __init__(self, network: Network, wanted: Wanted):
        self.wanted, metadata = wanted, kept_metadata(network.metadata)
        self.left_out = [key for key, text in metadata.items() if wanted.container == GGUF and len(text.encode()) > MOST_TEXT]
        metadata = {key: text for key, text in metadata.items() if key not in self.left_out}
        self.tensors: list[PlannedTensor] = plan_tensors(network, wanted)
        if wanted.container == GGUF:
            self.header = gguf_header(self.tensors, wanted, metadata)
            self.size = len(self.header) + sum(padded(tensor.size) for tensor in self.tensors)
        else:
            self.header = safetensors_header(self.tensors, metadata)
            self.size = len(self.header) + sum(tensor.size for tensor in self.tensors)


@contextmanager
def written_part(
    folder: Path, plan: FilePlan, values: Callable[[PlannedTensor], torch.Tensor | PackedTensor], written: Callable[[int], None]
) -> Iterator[Path]:
    """A whole file of that plan in `folder` under a name of its own ending in `.part`; it is gone when this ends.

    It has been read back, each tensor equal to what was written. Whoever wants it gives it another name meanwhile (`take_name`).
    `values` gives those of a tensor, `written` is told the bytes that are in the file after each. Raises UNetFileError where the
    disk has no room for it, before anything is written, where values do not fit their format, or where the file reads back
    otherwise; OSError where the system does not let it be written.
    """
    free = shutil.disk_usage(folder).free
    if free < plan.size:
        raise UNetFileError(
            f"the file takes {plan.size / 1e9:,.3g} GB, and {free / 1e9:,.3g} GB are free on its disk. Free space there, or save "
            f"to another one."
        )
    part = folder / f"{uuid4().hex}.part"
    try:
        _compare(part, plan, _write(part, plan, values, written))
        yield part
    finally:
        part.unlink(missing_ok=True)


def take_name(part: Path, target: Path) -> None:
    """Gives a written file its name besides that of the part; raises FileExistsError where another has it, whoever wrote that.

    The name never stands for less than the whole file, also where the process is killed meanwhile.
    """
    try:
        os.link(part, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # a file system without hard links, such as exFAT: there the name stands for an empty file for an instant
        target.open("xb").close()  # one process alone can make it
        os.replace(part, target)


def _write(part: Path, plan: FilePlan, values, written) -> list[int]:
    """The checksum of each tensor."""
    sums = []
    with part.open("xb") as file:
        file.write(plan.header)
        for tensor in plan.tensors:
            data = tensor.encode(values(tensor)).numpy().data
            file.write(data)
            sums.append(zlib.crc32(data))
            if plan.wanted.container == GGUF:
                file.write(b"\0" * (padded(tensor.size) - tensor.size))
            written(file.tell())
    return sums


def _compare(part: Path, plan: FilePlan, sums: list[int]) -> None:
    """Raises UNetFileError where the file, opened as any other, holds a tensor with another checksum."""
    file = open_any(part)
    for tensor, written in zip(plan.tensors, sums, strict=True):
        found = file.get_packed(tensor.name).data if isinstance(file, GGUFFile) else file.get_tensor(tensor.name).reshape(-1)
        if zlib.crc32(found.view(torch.uint8).numpy().data) != written:
            raise UNetFileError(
                f"{tensor.name} reads back from the disk otherwise than it was written. Check the disk, or save to another one."
            )
