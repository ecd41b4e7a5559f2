"""Files by the names that nodes show: models through the host's lists, residuals in its input, output and temp folders."""

import os
import reprlib
from pathlib import Path

import folder_paths
import torch

from .listed_files import diffusers_folders, listed

# Before a name that Load UNet shows: the folder that it is in.
CHECKPOINTS, UNETS, DIFFUSERS = "checkpoints/", "diffusion_models/", "diffusers/"
IN_FOLDER = "unet/config.json"  # by which a folder of diffusers' layout is found
BUNDLED = Path(__file__).resolve().parents[3] / "tools" / "miniature" / "weights"  # comes with the pack
BUNDLED_CHECKPOINT, BUNDLED_CONTROLNET = "miniature_svd.safetensors", "miniature_svd_controlnet_path.safetensors"
WEIGHT_DTYPES: dict[str, dict] = {  # choices of the loaders -> model_options
    "default": {},
    "fp32": {"dtype": torch.float32},
    "fp16": {"dtype": torch.float16},
    "bf16": {"dtype": torch.bfloat16},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def checkpoint_names() -> list[str]:
    """Files of `checkpoints`, then the miniature that comes with the pack."""
    return _with_bundled(listed("checkpoints"), BUNDLED_CHECKPOINT)


def valid_checkpoint_names() -> list[str]:
    """`checkpoint_names`, and the parts of sets, which saved workflows may hold."""
    return checkpoint_names() + folder_paths.get_filename_list("checkpoints")


def checkpoint_path(name: str) -> str:
    """The path of one of `valid_checkpoint_names`; raises FileNotFoundError where there is no such file."""
    return _bundled_path("checkpoints", name, BUNDLED_CHECKPOINT)


def unet_names() -> list[str]:
    """Files of `diffusion_models` by their name, those of `checkpoints` as `checkpoints/<name>`; each once.

    Folders of diffusers' layout end in a slash; those of `diffusers` are `diffusers/<name>/`. Names of `diffusion_models` that read
    as if they began with one of these folders are offered as `diffusion_models/<name>`.
    """
    unets = [UNETS + name if name.startswith((CHECKPOINTS, UNETS)) else name for name in listed("diffusion_models")]
    folders = [
        UNETS + name if name.startswith((CHECKPOINTS, UNETS, DIFFUSERS)) else name for name in diffusers_folders("diffusion_models")
    ]
    return [
        *unets, *folders, *(DIFFUSERS + name for name in diffusers_folders("diffusers")),
        *(CHECKPOINTS + name for name in listed("checkpoints")),
    ]


def valid_unet_names() -> list[str]:
    """`unet_names`, and what saved workflows may hold: parts of sets, and names of version 0.1.0, which were the host's."""
    checkpoints = [CHECKPOINTS + name for name in folder_paths.get_filename_list("checkpoints")]
    return unet_names() + folder_paths.get_filename_list("diffusion_models") + checkpoints


def unet_path(name: str) -> str:
    """The path of one of `valid_unet_names`; raises FileNotFoundError where there is no such file.

    Of two files that a name may mean it is the one that version 0.1.0 loaded: `checkpoints/a` is a file of `checkpoints`.
    """
    _check_name("diffusion_models", name)
    if name.endswith("/"):
        return _diffusers_path(name)
    if name.startswith(CHECKPOINTS):
        path = folder_paths.get_full_path("checkpoints", name.removeprefix(CHECKPOINTS))
    elif name.startswith((UNETS + CHECKPOINTS, UNETS + UNETS)):
        path = folder_paths.get_full_path("diffusion_models", name.removeprefix(UNETS))
    else:
        path = None
    return path or folder_paths.get_full_path_or_raise("diffusion_models", name)


def _diffusers_path(name: str) -> str:
    """The path of a folder that `unet_names` lists; raises FileNotFoundError where there is none."""
    if name.startswith(DIFFUSERS):
        found = folder_paths.get_full_path_or_raise("diffusers", name.removeprefix(DIFFUSERS) + IN_FOLDER)
    else:
        inside = name.removeprefix(UNETS) if name.startswith((UNETS + CHECKPOINTS, UNETS + UNETS, UNETS + DIFFUSERS)) else name
        found = folder_paths.get_full_path_or_raise("diffusion_models", inside + IN_FOLDER)
    return str(Path(found).parents[1])


def controlnet_names() -> list[str]:
    """Files of `controlnet`, then the miniature's ControlNet that comes with the pack."""
    return _with_bundled(folder_paths.get_filename_list("controlnet"), BUNDLED_CONTROLNET)


def controlnet_path(name: str) -> str:
    """The path of one of `controlnet_names`; raises FileNotFoundError where there is no such file."""
    return _bundled_path("controlnet", name, BUNDLED_CONTROLNET)


def lora_names() -> list[str]:
    """Files of `loras`."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> str:
    """The path of one of `lora_names`; raises FileNotFoundError where there is no such file."""
    _check_name("loras", name)
    return folder_paths.get_full_path_or_raise("loras", name)


def _with_bundled(names: list[str], bundled: str) -> list[str]:
    return names if bundled in names or not (BUNDLED / bundled).is_file() else [*names, bundled]


def _bundled_path(folder: str, name: str, bundled: str) -> str:
    _check_name(folder, name)
    if name == bundled and bundled not in folder_paths.get_filename_list(folder) and (BUNDLED / bundled).is_file():
        return str(BUNDLED / bundled)
    return folder_paths.get_full_path_or_raise(folder, name)


def _check_name(folder: str, name) -> None:
    """Raises ValueError where a prompt, or a node that is linked, gives no text as the name of a file of `folder`."""
    if not isinstance(name, str):
        raise ValueError(f"{quoted(name)} is not the name of a file in models/{folder}. Choose one of the node's list.")


def residuals_path(node: str, name: str) -> str:
    """The path of the file of residuals that a user names: in the input folder, or as `name [output]` or `name [temp]`.

    Raises ValueError, which names `node`, where it is no regular file, or where its name or a link leads out of the folder:
    ComfyUI 0.30 confines names so, 0.16 does not.
    """
    if not isinstance(name, str):
        raise ValueError(f"{node}: residuals_name is {quoted(name)}, expected the name of a file.")
    kind = next((kind for kind in ("output", "temp") if name.endswith(f"[{kind}]")), "input")
    inside, _ = folder_paths.annotated_filepath(name)
    try:
        path = real_path_in(kind, inside)
        if os.path.isfile(path):
            return path
        found = "is a folder, a device or a pipe, expected a file" if os.path.exists(path) else f"is not in the {kind} folder"
    except ValueError as error:
        found = str(error)
    raise ValueError(f"{node}: {quoted(name)} {found}. Put the file itself into the {kind} folder, or choose another.")


def real_path_in(kind: str, name: str) -> str:
    """Where `name` lies in the host's input, output or temp folder (`kind`), links followed.

    Raises ValueError, which says in words that follow the name what is wrong with it, where that is not in the folder, or can be
    nowhere.
    """
    folder = os.path.realpath(folder_paths.get_directory_by_type(kind))
    try:
        path = os.path.realpath(os.path.join(folder, name))
    except ValueError:  # it holds NUL, or half a character
        raise ValueError("is not a name that a file can have") from None
    if not Path(path).is_relative_to(folder):
        raise ValueError(f"leads out of the {kind} folder")
    return path


def quoted(name) -> str:
    """A name for a message: in quotes, on one line, the middle of a long one left out."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    return short.repr(name)
