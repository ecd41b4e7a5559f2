"""Files by the names that nodes show: models through the host's lists, residuals in its input, output and temp folders."""

import os
import reprlib
from pathlib import Path

import folder_paths
import torch

CHECKPOINTS = "checkpoints/"  # before the name of a full checkpoint
WEIGHT_DTYPES: dict[str, dict] = {  # choices of Load UNet -> model_options
    "default": {},
    "fp32": {"dtype": torch.float32},
    "fp16": {"dtype": torch.float16},
    "bf16": {"dtype": torch.bfloat16},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def unet_names() -> list[str]:
    """Files of `diffusion_models` by their name, those of `checkpoints` as `checkpoints/<name>`."""
    checkpoints = [CHECKPOINTS + name for name in folder_paths.get_filename_list("checkpoints")]
    return folder_paths.get_filename_list("diffusion_models") + checkpoints


def unet_path(name: str) -> str:
    """The path of one of `unet_names`; raises FileNotFoundError where there is no such file."""
    if name.startswith(CHECKPOINTS):
        return folder_paths.get_full_path_or_raise("checkpoints", name.removeprefix(CHECKPOINTS))
    return folder_paths.get_full_path_or_raise("diffusion_models", name)


def controlnet_names() -> list[str]:
    return folder_paths.get_filename_list("controlnet")


def controlnet_path(name: str) -> str:
    """The path of one of `controlnet_names`; raises FileNotFoundError where there is no such file."""
    return folder_paths.get_full_path_or_raise("controlnet", name)


def residuals_path(node: str, name: str) -> str:
    """The path of the file of residuals that a user names: in the input folder, or as `name [output]` or `name [temp]`.

    Raises ValueError, which names `node`, where it is no regular file, or where its name or a link leads out of the folder:
    ComfyUI 0.30 confines names so, 0.16 does not.
    """
    if not isinstance(name, str):
        raise ValueError(f"{node}: residuals_name is {quoted(name)}, expected the name of a file.")
    kind = next((kind for kind in ("output", "temp") if name.endswith(f"[{kind}]")), "input")
    inside, _ = folder_paths.annotated_filepath(name)
    folder = os.path.realpath(folder_paths.get_directory_by_type(kind))
    try:
        path = os.path.realpath(os.path.join(folder, inside))
    except ValueError:  # it holds NUL, or half a character
        path = None
    if path is None:
        found = "is not a name that a file can have"
    elif not Path(path).is_relative_to(folder):
        found = f"leads out of the {kind} folder"
    elif not os.path.exists(path):
        found = f"is not in the {kind} folder"
    elif not os.path.isfile(path):
        found = "is a folder, a device or a pipe, expected a file"
    else:
        return path
    raise ValueError(f"{node}: {quoted(name)} {found}. Put the file itself into the {kind} folder, or choose another.")


def quoted(name) -> str:
    """A name for a message: in quotes, on one line, the middle of a long one left out."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    return short.repr(name)
