"""What loaders of UNets list beyond the host's lists: GGUF files, sets of shards as one entry, folders of diffusers' layout.

The host lists files by their endings, which all of its folders share: ours would show up in other loaders too.
Its cache says which folders there are, and is made again when one of them changes; ours is made again with it.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass

import folder_paths

from ....unet.weights.shards import PART

INDEX = re.compile(r"(?P<begin>.+)\.(?P<ending>\w+)\.index(?:\.(?P<variant>\w+))?\.json", re.DOTALL)


@dataclass(frozen=True)
class _More:
    files: list[str]  # GGUF files and indexes of shards
    folders: list[str]  # of diffusers' layout, each with a slash at its end


FOUND: dict[str, tuple[dict, _More]] = {}  # of each of the host's folders: its cached folders that this was made from


def listed(folder: str) -> list[str]:
    """Files of weights in one of the host's folders by the name of each, a set of shards once."""
    names = [*folder_paths.get_filename_list(folder), *_more(folder).files]
    hidden = _hidden(names)
    return sorted(name for name in names if name not in hidden)


def diffusers_folders(folder: str) -> list[str]:
    """Folders of diffusers' layout with a UNet, in one of the host's folders, as `name/`."""
    return _more(folder).folders


def _more(folder: str) -> _More:
    folder_paths.get_filename_list(folder)
    folders = folder_paths.filename_list_cache[folder][1]
    if folder not in FOUND or FOUND[folder][0] is not folders:
        FOUND[folder] = folders, _look(folder, folders)
    return FOUND[folder][1]


def _look(folder: str, folders: Collection[str]) -> _More:
    files, layouts = set(), set()
    for base in folder_paths.get_folder_paths(folder):
        for inside in [path for path in folders if path == base or path.startswith(base + os.sep)]:
            try:
                names = os.listdir(inside)
            except OSError:  # it was removed since
                continue
            begin = "" if inside == base else os.path.relpath(inside, base) + os.sep
            files |= {begin + name for name in names if name.lower().endswith(".gguf") or INDEX.fullmatch(name)}
            if begin and os.path.join(inside, "unet") in folders and os.path.isfile(os.path.join(inside, "unet", "config.json")):
                layouts.add(os.path.relpath(inside, base) + "/")
    return _More(sorted(files), sorted(layouts))


def _hidden(names: Collection[str]) -> set[str]:
    """The parts of sets that another entry stands for: their index, or the first part where there is none."""
    present, indexed = set(names), set()
    for found in filter(None, map(INDEX.fullmatch, names)):
        begin, ending, variant = found["begin"], f".{found['ending']}", f".{found['variant']}" if found["variant"] else ""
        indexed |= {(begin + variant, ending), (begin, variant + ending)}
    hidden = set()
    for found in filter(None, map(PART.fullmatch, names)):
        first = f"{found['begin']}-00001-of-{found['count']}{found['end']}"
        if (found["begin"], found["end"]) in indexed or (found[0] != first and first in present):
            hidden.add(found[0])
    return hidden
