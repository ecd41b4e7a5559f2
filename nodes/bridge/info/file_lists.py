"""Which model files the loaders offer: those that the host lists in its folders, and kinds whose endings it does not know.

The host's folders share one set of endings, so another one there would show in every loader of every pack. Lists of our own stand
beside them, over the same folders, also those that are added later.
"""

import re

import folder_paths

OWN_LISTS = {  # a folder of the host -> (a list of ours over it, the endings in it)
    "diffusion_models": ("temporal_unet_diffusion_models", {".gguf", ".json"}),
    "checkpoints": ("temporal_unet_checkpoints", {".gguf", ".json"}),
    "diffusers": ("temporal_unet_diffusers", {".gguf", ".json", ".safetensors", ".bin"}),
}
for _folder, (_list, _endings) in OWN_LISTS.items():
    folder_paths.folder_names_and_paths[_list] = (folder_paths.folder_names_and_paths[_folder][0], _endings)

INDEX = re.compile(r"(?P<stem>.*)\.(?:safetensors|bin)\.index(?:\.[^./\\]+)?\.json", re.DOTALL)
PART = re.compile(r"(?P<begin>.*)-(?P<index>\d{5})-of-\d{5}\.[^./\\]+", re.DOTALL)
IN_UNET = re.compile(r"(?:^|[/\\])unet[/\\][^/\\]+\Z")  # a file of the network in a folder of diffusers' layout


def offered_names(folder: str) -> list[str]:
    """The files of one of the host's folders by name; of weights in several files the index alone, or the first part."""
    names = _own_names(folder)
    if folder != "diffusers":  # where the host lists folders
        names = [*folder_paths.get_filename_list(folder), *names]
    stems = {found["stem"] for name in names if (found := INDEX.fullmatch(name))}
    return [name for name in names if _is_entry(name, stems)]


def _own_names(folder):
    names = folder_paths.get_filename_list(OWN_LISTS[folder][0])
    if folder == "diffusers":
        names = [name for name in names if IN_UNET.search(name)]
    return [name for name in names if not name.lower().endswith(".json") or INDEX.fullmatch(name)]


def _is_entry(name, stems):
    part = PART.fullmatch(name)
    if part is None:
        return True
    indexed = part["begin"] in stems or part["begin"].rpartition(".")[0] in stems  # a variant: model.fp16-00001-of-00002
    return int(part["index"]) == 1 and not indexed
