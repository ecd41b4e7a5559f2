"""A small network for every row of the family table, with random weights: what the tests run instead of real files."""

from dataclasses import replace
from functools import lru_cache

import torch
from safetensors.torch import save_file

from unet import UNetConfig, UNetModel
from unet.weights.diffusers_names import diffusers_layers

PREFIX = "model.diffusion_model."

_SD1 = UNetConfig(
    in_channels=4, out_channels=4, model_channels=32, channel_mult=(1, 2, 4, 4), num_res_blocks=(2, 2, 2, 2),
    depth_in=(1, 1, 1, 1, 1, 1, 0, 0), depth_out=(0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1), depth_middle=1,
    context_dim=768, linear_projection=False, self_attention=(True,) * 4, temporal=False,
    num_heads=8, head_channels=None,
)
_SD2 = replace(_SD1, model_channels=64, context_dim=1024, linear_projection=True, num_heads=None, head_channels=64)
_SVD = replace(_SD2, in_channels=8, temporal=True, adm_channels=768)
_SDXL = replace(
    _SD2, channel_mult=(1, 2, 4), num_res_blocks=(2, 2, 2), depth_in=(0, 0, 2, 2, 10, 10),
    depth_out=(10, 10, 10, 2, 2, 2, 0, 0, 0), depth_middle=10, context_dim=2048, self_attention=(True,) * 3,
    adm_channels=2816,
)
_VEGA = replace(_SDXL, depth_in=(0, 0, 1, 1, 2, 2), depth_out=(2, 2, 2, 1, 1, 1, 0, 0, 0), depth_middle=0)
_SD1_TINY = replace(
    _SD1, channel_mult=(1, 2, 4), num_res_blocks=(1, 1, 1), depth_in=(0, 1, 1), depth_out=(1, 1, 1, 1, 0, 0),
    depth_middle=None, self_attention=(True,) * 3,
)

TINY = {
    "svd": _SVD,
    "sv3d_u": replace(_SVD, adm_channels=256),
    "sv3d_p": replace(_SVD, adm_channels=1280),
    "sd1_tiny": _SD1_TINY,
    "sd1": _SD1,
    "sd1_inpaint": replace(_SD1, in_channels=9),
    "zero123": replace(_SD1, in_channels=8),
    "sd1_ip2p": replace(_SD1, in_channels=8),
    "sd2_tiny": replace(
        _SD1_TINY, model_channels=64, context_dim=1024, linear_projection=True, num_heads=None, head_channels=64,
        depth_in=(1, 1, 1), depth_out=(1,) * 6, self_attention=(False, True, True),
    ),
    "sd2": _SD2,
    "sd2_inpaint": replace(_SD2, in_channels=9),
    "unclip_l": replace(_SD2, adm_channels=1536),
    "unclip_h": replace(_SD2, adm_channels=2048),
    "lotus": replace(_SD2, adm_channels=4),
    "x4_upscaler": replace(  # level 0 has no transformers: it reads as attending to itself
        _SD2, in_channels=7, num_classes=1000, self_attention=(True, False, False, True), num_heads=8,
        head_channels=None, depth_in=(0, 0, 1, 1, 1, 1, 1, 1), depth_out=(1,) * 9 + (0,) * 3,
    ),
    "sdxl_refiner": replace(
        _SDXL, model_channels=64, channel_mult=(1, 2, 4, 4), num_res_blocks=(2, 2, 2, 2),
        depth_in=(0, 0, 4, 4, 4, 4, 0, 0), depth_out=(0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0), depth_middle=4,
        context_dim=1280, adm_channels=2560, self_attention=(True,) * 4,
    ),
    "ssd_1b": replace(
        _SDXL, depth_in=(0, 0, 2, 2, 4, 4), depth_out=(4, 4, 10, 2, 1, 1, 0, 0, 0), depth_middle=0
    ),
    "vega": _VEGA,
    "koala_700m": replace(
        _SDXL, num_res_blocks=(1, 1, 1), depth_in=(0, 2, 5), depth_out=(5, 5, 2, 2, 0, 0), depth_middle=None
    ),
    "koala_1b": replace(
        _SDXL, num_res_blocks=(1, 1, 1), depth_in=(0, 2, 6), depth_out=(6, 6, 2, 2, 0, 0), depth_middle=6
    ),
    "sdxl": _SDXL,
    "sdxl_ip2p": replace(_VEGA, in_channels=8),  # these two are known by their channels, whatever their depth
    "sdxl_inpaint": replace(_VEGA, in_channels=9),
}

FULL = {
    "sd1": replace(_SD1, model_channels=320),
    "sd2": replace(_SD2, model_channels=320),
    "sdxl": replace(_SDXL, model_channels=320),
    "svd": replace(_SVD, model_channels=320),
}


def random_weights(config: UNetConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights of a size that keeps activations near 1, none of them zero, so that every layer shows in the output."""
    return {name: value.clone() for name, value in _drawn(config, seed, dtype).items()}


@lru_cache(maxsize=1)  # tests of one network come one after the other, and drawing takes ten times as long as copying
def _drawn(config, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in UNetModel(config, device="meta").state_dict().items():
        value = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            value *= tensor[0].numel() ** -0.5
        elif name.endswith("weight"):  # norms
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        weights[name] = value.to(torch.float32 if name.endswith("mix_factor") else dtype)
    return weights


def write_unet(path, config: UNetConfig, *, seed: int = 0, dtype=torch.float32, prefix=PREFIX, beside=None, metadata=None):
    """A safetensors file with such a UNet under `prefix` and the other tensors `beside`; returns the weights."""
    weights = random_weights(config, seed, dtype)
    save_file({**{prefix + name: value for name, value in weights.items()}, **(beside or {})}, path, metadata)
    return weights


def in_diffusers_layout(config: UNetConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of such a UNet, scales too, under the names of diffusers' layout."""
    layers = diffusers_layers(config)
    split = {name: name.rpartition(".") for name in weights}
    return {f"{layers[layer]}.{parameter}": weights[name] for name, (layer, _, parameter) in split.items()}


def inputs(config: UNetConfig, *, frames: int = 1, batch: int = 1, size=(8, 8), seed: int = 1) -> dict:
    """Arguments of one forward call: `batch` videos (or images) of `frames` frames of `size` latent pixels."""
    generator = torch.Generator().manual_seed(seed)
    rows = batch * frames
    out = {
        "x": torch.randn(rows, config.in_channels, *size, generator=generator),
        "timesteps": (torch.rand(batch, generator=generator) * 900).repeat_interleave(frames),
        "context": torch.randn(rows, 1 if config.temporal else 7, config.context_dim, generator=generator),
    }
    if config.num_classes:
        out["y"] = torch.randint(config.num_classes, (rows,), generator=generator)
    elif config.adm_channels:
        out["y"] = torch.randn(rows, config.adm_channels, generator=generator)
    return out


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖ in fp64."""
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).norm() / theirs.norm()).item()
