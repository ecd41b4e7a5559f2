"""Model files by the names that nodes show, found through the host's lists of folders."""

import folder_paths
import torch

CHECKPOINTS = "checkpoints/"  # before the name of a full checkpoint
WEIGHT_DTYPES = {  # choices of Load UNet -> model_options
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
