"""What `speed.py` measures: our UNet and the host's on the same weights, and one call's arguments. Needs a booted host."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import comfy.ldm.modules.attention as host_attention
import comfy.ops
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel as HostUNet
from torch.utils._pytree import tree_map

from support.families import FULL, TINY
from support.full_size import pooled_weights
from support.oracle import ROWS, host_unet_config
from unet import UNetConfig, residual_shapes

NAMES = {"svd": "svd", "sd15": "sd1", "sdxl": "sdxl"}  # of families here and in support/families.py


@dataclass(frozen=True)
class Case:
    """One call: `rows` frames of a video, or images of a batch with both branches of guidance, of latent pixels."""

    family: str
    rows: int
    height: int
    width: int
    controlled: bool = False

    def __str__(self):
        return f"{self.family}{' controlled' if self.controlled else ''} {self.rows}x{self.height}x{self.width}"


@dataclass
class Networks:
    """Ours and the host's on the same tensors; both are called as the host's `apply_model` does."""

    config: UNetConfig  # of ours
    dtype: torch.dtype  # of activations
    ours: torch.nn.Module
    host: torch.nn.Module


def make_networks(pack: Callable, family: str, settings) -> Networks:
    """Both networks of a family; `pack` imports a module of the pack by its name, `settings` are speed.py's."""
    name, dtype = NAMES[family], getattr(torch, settings.dtype)
    config = (TINY if settings.tiny else FULL)[name]
    weights = pooled_weights(config, dtype)
    for key in weights:
        if key.endswith("mix_factor"):
            weights[key] = weights[key].float()
    opened = SimpleNamespace(  # what our loader asks of an open file
        path=Path(f"{name} in memory"), stamps={}, schedule=None, config=config, family=ROWS[name], names={}, shapes={},
        metadata={}, quantized={}, quantization={}, dtype=lambda: dtype, parameters=0, state_dict=lambda *args, **kwargs: weights,
    )
    model = pack("nodes.bridge.model.unet_loader").load_checkpoint(opened, {"dtype": dtype}).model
    ours = model.diffusion_model.to(settings.device)
    operations = comfy.ops.pick_operations(dtype, model.manual_cast_dtype)
    host = HostUNet(**host_unet_config(weights, ROWS[name]), dtype=dtype, device="meta", operations=operations)
    host.load_state_dict(ours.state_dict(), assign=True)
    return Networks(config, model.get_dtype_inference(), ours, host.requires_grad_(False).eval())


def arguments(case: Case, config, dtype: torch.dtype, device: str) -> dict:
    """What the host passes to its `diffusion_model`, by name."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    rows = case.rows
    given = {
        "x": random(rows, config.in_channels, case.height, case.width),
        "timesteps": torch.full((rows,), 1.5 if config.temporal else 500.0, device=device),
        "context": random(1, 1, config.context_dim).repeat(rows, 1, 1) if config.temporal else random(rows, 77, config.context_dim),
        "y": random(rows, config.adm_channels) if config.adm_channels else None,
        "control": None,
    }
    if config.temporal:
        given["num_video_frames"] = rows
    if case.controlled:
        residuals = [0.1 * random(rows, *shape) for shape in residual_shapes(config, case.height, case.width)]
        given["control"] = {"input": [], "middle": residuals[-1:], "output": residuals[:-1]}
    branches = [0] if config.temporal else [1, 0]
    given["transformer_options"] = {
        "cond_or_uncond": branches, "uuids": branches, "sigmas": given["timesteps"], "sample_sigmas": given["timesteps"],
    }
    return given


def prepared(network: torch.nn.Module, given: dict) -> Callable:
    """One call of the network on copies: the host makes new tensors in each step too, and uses up the lists of residuals."""
    copies = tree_map(lambda value: value.clone() if isinstance(value, torch.Tensor) else value, given)
    return partial(network, copies.pop("x"), copies.pop("timesteps"), **copies)


def with_sdpa(given: dict) -> dict:
    """The same call, in which the host's network takes PyTorch's attention, by the host's own override."""
    options = {**given["transformer_options"], "optimized_attention_override": _sdpa}
    return {**given, "transformer_options": options}


def _sdpa(function, *args, **kwargs):
    return host_attention.attention_pytorch(*args, **kwargs)


def host_takes_sdpa() -> bool:
    """Whether PyTorch's attention is what the host has chosen."""
    return host_attention.optimized_attention is host_attention.attention_pytorch
