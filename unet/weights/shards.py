"""Weights in several files: which files a name stands for, and the set of them used as one open file.

A set is named by its index, a JSON file with the file name of every tensor (`model.safetensors.index.json`), by any of its parts
(`model-00001-of-00002.safetensors`), or by a folder of diffusers' layout whose network lies in parts.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .diffusers_folder import network_in
from .errors import UNetFileError, shorten
from .on_disk import open_regular

MOST_INDEX = 4 * 2**20  # bytes; SDXL's has 0.2 MB
MOST_PARTS = 500
PART = re.compile(r"(?P<begin>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<end>(?:\.[^.]+)*)", re.DOTALL)
PLAIN_NAME = re.compile(r"(?!\.{1,2}\Z)[^/\\:\0]+")


def weight_files(path: Path) -> list[Path]:
    """The files that the weights named by `path` are in: itself, or all parts of its set.

    A part whose set is not whole stands for itself. Raises UNetFileError where `path` is no file, or a folder or an index that
    cannot be used.
    """
    if os.path.isdir(path):
        path = network_in(path)
    text = _json(path)
    if text is not None:
        return [path.with_name(name) for name in _listed(path, text)]
    parts = _parts(path)
    return parts if all(map(os.path.isfile, parts)) else [path]


def missing_part(path: Path) -> str | None:
    """That `path` is one part of a set of which another is missing, in words that say what to do; None where it is not."""
    found = PART.fullmatch(path.name)
    missing = next((part for part in _parts(path) if not os.path.isfile(part)), None)
    if found is None or missing is None:
        return None
    return (
        f"it is part {int(found['index'])} of {int(found['count'])} of a model, and {missing.name} is missing. Put all parts into "
        f"one folder."
    )


def _parts(path: Path) -> list[Path]:
    """Every part of the set that `path` is one of by its name; `path` alone where it is none."""
    found = PART.fullmatch(path.name)
    count = int(found["count"]) if found else 0
    if found is None or not 1 <= int(found["index"]) <= count <= MOST_PARTS:
        return [path]
    return [path.with_name(f"{found['begin']}-{index:05}-of-{count:05}{found['end']}") for index in range(1, count + 1)]


def _json(path: Path) -> bytes | None:
    """The text of a JSON file; None where it is another kind of file. Raises UNetFileError where it is too long for an index."""
    with open_regular(path) as file:
        head, size = file.read(32), os.fstat(file.fileno()).st_size
        if head.lstrip()[:1] != b"{" or int.from_bytes(head[:8], "little") < size:  # a safetensors header may begin so
            return None
        if size > MOST_INDEX:
            raise _no_index(path, f"of {size / 2**20:,.0f} MiB, expected {MOST_INDEX >> 20} at most")
        return head + file.read(MOST_INDEX)


def _listed(path: Path, text: bytes) -> list[str]:
    """The names of the parts that an index lists; raises UNetFileError where one is no plain file name, or is missing."""
    try:
        index = json.loads(text)
    except (ValueError, RecursionError):
        raise _no_index(path, "that is damaged") from None
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise _no_index(path, "without a weight_map")
    names = sorted(set(files.values()))
    if len(names) > MOST_PARTS:
        raise _no_index(path, f"of {len(names):,} files, expected {MOST_PARTS} at most")
    for name in names:
        if not PLAIN_NAME.fullmatch(name):
            raise _no_index(path, f"with {shorten(repr(name))} in its weight_map, expected names of files next to it")
        if not os.path.isfile(path.with_name(name)):
            raise UNetFileError(
                f"{path.name}: it lists {len(names)} files, and {shorten(name)} is missing. Put it next to the index."
            )
    return names


def _no_index(path: Path, what: str) -> UNetFileError:
    return UNetFileError(f"{path.name}: it is a JSON file {what}. Choose a file of weights, or the index of a set of them.")


class ShardSet:
    """The parts of a set, used as one open file. Raises UNetFileError where two of them hold the same tensor."""

    def __init__(self, path: Path, parts: Mapping[Path, Any]):
        self.parts = list(parts.values())
        self.places: dict[str, tuple[Path, Any]] = {}  # of a tensor: the part's path, and the part
        for file, part in parts.items():
            for name in part.keys():
                if name in self.places:
                    raise UNetFileError(
                        f"{path.name}: {shorten(name)} is both in {self.places[name][0].name} and in {file.name}: these are parts "
                        f"of different sets. Get all parts of one set again."
                    )
                self.places[name] = file, part

    def keys(self):
        return self.places.keys()

    def metadata(self) -> dict[str, str]:
        return {key: text for part in self.parts for key, text in (part.metadata() or {}).items()}

    def get_slice(self, name: str):
        return self.places[name][1].get_slice(name)

    def get_tensor(self, name: str):
        return self.places[name][1].get_tensor(name)

    def get_packed(self, name: str):
        return self.places[name][1].get_packed(name)
