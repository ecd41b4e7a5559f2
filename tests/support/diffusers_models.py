"""diffusers' own networks for ours: its config of each, as a folder's `config.json` has it, and the network."""

import torch
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel

from unet import UNetConfig


def diffusers_config(config: UNetConfig) -> dict:
    """The arguments of diffusers' network that is this one."""
    levels = range(len(config.channel_mult))
    down = _by_level(config.depth_in, config.num_res_blocks)
    up = _by_level(config.depth_out, [count + 1 for count in reversed(config.num_res_blocks)])
    heads = [config.heads(channels)[0] for channels in config.level_channels]
    shared = {
        "in_channels": config.in_channels, "out_channels": config.out_channels, "block_out_channels": config.level_channels,
        "layers_per_block": list(config.num_res_blocks), "cross_attention_dim": config.context_dim,
    }
    if config.temporal:
        return shared | {
            "down_block_types": [f"{_attending(down[level])}DownBlockSpatioTemporal" for level in levels],
            "up_block_types": [f"{_attending(up[level])}UpBlockSpatioTemporal" for level in levels],
            "num_attention_heads": heads, "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": config.adm_channels,
        }
    middle = {None: None, 0: "UNetMidBlock2D"}.get(config.depth_middle, "UNetMidBlock2DCrossAttn")
    nested = middle == "UNetMidBlock2D"  # as SSD-1B, whose depths differ inside of a block
    more = {}
    if nested:
        more["reverse_transformer_layers_per_block"] = [list(depths) for depths in up]
    if config.num_classes is not None:
        more["num_class_embeds"] = config.num_classes
    elif config.adm_channels is not None:
        more["projection_class_embeddings_input_dim"] = config.adm_channels
        more |= {"class_embed_type": "projection"} if config.context_dim == 1024 else {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        }
    return shared | more | {
        "down_block_types": [f"{_attending(down[level])}DownBlock2D" for level in levels], "mid_block_type": middle,
        "up_block_types": [f"{_attending(up[level])}UpBlock2D" for level in levels],
        "attention_head_dim": heads,  # is their count: diffusers' old misnomer
        "use_linear_projection": config.linear_projection,
        "transformer_layers_per_block": [list(depths) if nested else max(depths) or config.depth_middle or 1 for depths in down],
        "only_cross_attention": [not attends for attends in config.self_attention],
    }


def diffusers_network(config: UNetConfig) -> torch.nn.Module:
    """diffusers' network, without values."""
    kind = UNetSpatioTemporalConditionModel if config.temporal else UNet2DConditionModel
    with torch.device("meta"):
        return kind(**diffusers_config(config))


def _by_level(depths, counts):
    """The depths of each level, one a residual block."""
    depths = iter(depths)
    return [[next(depths) for _ in range(count)] for count in counts]


def _attending(depths) -> str:
    return "CrossAttn" if any(depths) else ""
