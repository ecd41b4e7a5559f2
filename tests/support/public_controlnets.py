"""SVD ControlNets with random weights under the names of the public files."""

from itertools import pairwise

import torch

from support.diffusers_names import to_diffusers
from support.families import TINY, random_weights

CONFIG = TINY["svd"]
WIDTHS = (4, 6, 8, 10)  # of the hint net
ENCODER = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")


def public_tensors(config=CONFIG, seed=3):
    """A random ControlNet under the names of the public files."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator) * 0.2

    tensors = {to_diffusers(k): v for k, v in random_weights(config, seed).items() if k.startswith(ENCODER)}
    hint = {"conv_in": (WIDTHS[0], 3), "conv_out": (config.model_channels, WIDTHS[-1])}
    for i, (narrow, wide) in enumerate(pairwise(WIDTHS)):
        hint |= {f"blocks.{2 * i}": (narrow, narrow), f"blocks.{2 * i + 1}": (wide, narrow)}
    for name, (n_out, n_in) in hint.items():
        tensors[f"controlnet_cond_embedding.{name}.weight"] = random(n_out, n_in, 3, 3)
        tensors[f"controlnet_cond_embedding.{name}.bias"] = random(n_out)
    skips = [block.channels for block in config.input_layout()]
    zero_convs = {f"controlnet_down_blocks.{i}": width for i, width in enumerate(skips)} | {"controlnet_mid_block": skips[-1]}
    for name, width in zero_convs.items():
        tensors |= {f"{name}.weight": random(width, width, 1, 1), f"{name}.bias": random(width)}
    return tensors
