"""Weights of a network in its real size, and a file of them."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from support.families import FULL, PREFIX
from unet import UNetConfig, UNetModel


def pooled_weights(config: UNetConfig, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """As `families.random_weights`, from one pool of random numbers (a real draw of 1.5e9 takes minutes)."""
    pool = torch.randn(2**20 + 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    scaled: dict[float, torch.Tensor] = {}  # the pool for each scale: multiplying every tensor takes half a minute
    weights, offset = {}, 0
    for key, tensor in UNetModel(config, device="meta").state_dict().items():
        count = tensor.numel()
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        if scale not in scaled:
            scaled[scale] = pool * scale
        value = scaled[scale].roll(offset).repeat(count // len(pool) + 1)[:count].reshape(tensor.shape)
        offset += 7919
        norm = tensor.ndim == 1 and key.endswith("weight")
        weights[key] = 1 + value if norm else value
    return weights


def write_full_size(path: Path, name: str) -> None:
    """A file of `FULL[name]` in the real size and layout, in fp16."""
    save_file({PREFIX + key: value for key, value in pooled_weights(FULL[name]).items()}, path)
