"""Names of layers in diffusers' layout and in the original's, which our networks have: the map between them, both ways.

Names are mapped by layer path: what follows a layer (`weight`, `mix_factor`, `lora_up.weight`) stays as it is. No tensor changes.
Source: diffusers' `UNet2DConditionModel` and `UNetSpatioTemporalConditionModel`, and their conversion scripts.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ..config import UNetConfig
from ..model import UNetModel

Pairs = Iterable[tuple[str, str]]  # (beginning of a path, what replaces it)

# (own, diffusers'): outside of blocks, and inside of one after its path.
OUTSIDE = (
    ("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"),
    ("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"),
)
ADDED = (("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2"))  # SDXL, SVD
CLASSES = (  # unCLIP and Lotus; the x4 upscaler, which has a table of classes
    ("label_emb.0.0", "class_embedding.linear_1"), ("label_emb.0.2", "class_embedding.linear_2"), ("label_emb", "class_embedding"),
)
RESIDUAL = (
    ("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"), ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut"),
)
TEMPORAL_RESIDUAL = (  # SVD's residual blocks hold a second one over time
    *((own, f"spatial_res_block.{theirs}") for own, theirs in RESIDUAL),
    *((f"time_stack.{own}", f"temporal_res_block.{theirs}") for own, theirs in RESIDUAL),
)
ATTENTION = (
    ("time_stack", "temporal_transformer_blocks"),
    ("time_pos_embed.0", "time_pos_embed.linear_1"), ("time_pos_embed.2", "time_pos_embed.linear_2"),
)
MIDDLE = (
    ("middle_block.0", "mid_block.resnets.0"), ("middle_block.1", "mid_block.attentions.0"),
    ("middle_block.2", "mid_block.resnets.1"),
)
OWN_PART = re.compile(r"(?:(?:input|output)_blocks\.\d+\.\d+(?:\.(?:op|conv)(?![^.]))?|middle_block\.\d)(?![^.])")
THEIR_PART = re.compile(
    r"(?:(?:down|up)_blocks\.\d+\.(?:(?:resnets|attentions)\.\d+|(?:down|up)samplers\.0\.conv)"
    r"|mid_block\.(?:resnets|attentions)\.\d)(?![^.])"
)


@dataclass
class _Block:
    """One of diffusers' down or up blocks, each of which is a level."""

    residuals: set[str] = field(default_factory=set)  # their indices
    attends: bool = False
    resamples: bool = False


def to_ldm(names: Collection[str]) -> dict[str, str]:
    """Maps the original's names to those of diffusers' layout, which `names` are; one that is unknown stands for itself.

    Block indices follow from how many blocks there are, so `names` are all of a network's, or of its down path.
    """
    parts = {theirs: own for own, theirs in _parts(_blocks(names, "down"), _blocks(names, "up"))}
    outside = [(theirs, own) for own, theirs in (*OUTSIDE, *ADDED, *CLASSES)]
    residual = [(theirs, own) for own, theirs in (*TEMPORAL_RESIDUAL, *RESIDUAL)]
    attention = [(theirs, own) for own, theirs in ATTENTION]
    mapped: dict[str, str] = {}
    for name in names:
        found = THEIR_PART.match(name)
        if found is None:
            own = _swap(name, outside)
        elif found[0] not in parts:  # of a level or block before which one is missing: the check of the keys reports it
            own = name
        else:
            inside = residual if ".resnets." in found[0] else attention
            own = parts[found[0]] + _swap_inside(name[found.end():], inside)
        mapped[name if own in mapped else own] = name
    return mapped


def diffusers_layers(config: UNetConfig) -> dict[str, str]:
    """Maps the path of every layer of this network, such as `input_blocks.1.0.in_layers.2`, to that in diffusers' layout."""
    down = [_Block(set(map(str, range(count))), resamples=True) for count in config.num_res_blocks]
    down[-1].resamples = False
    up, first = [], 0
    for count in reversed(config.num_res_blocks):
        up.append(_Block(set(map(str, range(count + 1))), config.depth_out[first] > 0, resamples=True))
        first += count + 1
    parts = dict(_parts(down, up))
    sd2 = not config.temporal and config.context_dim == 1024
    outside = (*OUTSIDE, *(CLASSES if sd2 else ADDED))
    residual = TEMPORAL_RESIDUAL if config.temporal else RESIDUAL
    layers: dict[str, str] = {}
    for name in UNetModel(config, device="meta").state_dict():
        layer = name.rpartition(".")[0]
        found = OWN_PART.match(layer)
        if found is None or found[0] not in parts:  # input_blocks.0.0
            layers[layer] = _swap(layer, outside)
        else:
            inside = residual if ".resnets." in parts[found[0]] else ATTENTION
            layers[layer] = parts[found[0]] + _swap_inside(layer[found.end():], inside)
    return layers


def _blocks(names: Collection[str], direction: str) -> list[_Block]:
    """The down or up blocks that these names of diffusers' layout are of, from the first to the last before a gap."""
    blocks: Mapping[str, _Block] = defaultdict(_Block)
    for name in names:
        if found := re.match(rf"{direction}_blocks\.(\d+)\.(?:resnets\.(\d+)|(attentions)|({direction}samplers))\.", name):
            block = blocks[found[1]]
            if found[2]:
                block.residuals.add(found[2])
            block.attends |= found[3] is not None
            block.resamples |= found[4] is not None
    return [blocks[str(level)] for level in range(next(i for i in range(len(blocks) + 1) if str(i) not in blocks))]


def _parts(down: list[_Block], up: list[_Block]) -> Pairs:
    """(own, diffusers') path of every residual block, transformer and resampling convolution."""
    yield from MIDDLE
    place = 1
    for level, block in enumerate(down):
        yield from _inside("input_blocks", place, f"down_blocks.{level}", block)
        place += len(block.residuals)
        if block.resamples:
            yield f"input_blocks.{place}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            place += 1
    place = 0
    for level, block in enumerate(up):
        yield from _inside("output_blocks", place, f"up_blocks.{level}", block)
        place += len(block.residuals)
        if block.resamples:
            yield f"output_blocks.{place - 1}.{1 + block.attends}.conv", f"up_blocks.{level}.upsamplers.0.conv"


def _inside(own: str, place: int, theirs: str, block: _Block) -> Pairs:
    """The residual blocks of a level, the first of which is at `place`, and the transformers after them."""
    for index in range(len(block.residuals)):
        yield f"{own}.{place + index}.0", f"{theirs}.resnets.{index}"
        yield f"{own}.{place + index}.1", f"{theirs}.attentions.{index}"


def _swap_inside(rest: str, pairs: Pairs) -> str:
    """`_swap` for what follows the path of a block: a dot and a name, or nothing."""
    return rest and "." + _swap(rest[1:], pairs)


def _swap(path: str, pairs: Pairs) -> str:
    """The path with the first of these beginnings that it has replaced by what stands with it."""
    for old, new in pairs:
        if path == old or path.startswith(old + "."):
            return new + path[len(old):]
    return path
