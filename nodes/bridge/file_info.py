"""What a model file is, in words, before it is loaded: told from its header alone."""

import math
import re
from pathlib import Path

import comfy.model_management as management

from ...unet import (
    Checkpoint, SVDControlNet, UNetFileError, find_controlnet, open_checkpoint, open_controlnet, open_controlnext,
)
from ...unet.files import open_any, shapes_of
from .info import hosts_kind, no_controlnet, own_kind, unet_lines
from .loader import choose_config
from .memory import needed
from .windows import trained_length, window_length


def describe_unet_file(path: str, model_options: dict, width: int, height: int, frames: int) -> list[str]:
    """What `describe` says of the MODEL in the file, and what a clip of width x height pixels will take.

    Raises UNetFileError, as loading does, where the file is no whole UNet of the family.
    """
    checkpoint = open_checkpoint(path)
    config = choose_config(checkpoint, model_options)
    dtype = config.unet_config["dtype"]
    compute = config.manual_cast_dtype or dtype
    weights = checkpoint.parameters * management.dtype_size(dtype)
    lines = unet_lines(checkpoint, dtype, compute, weights)
    if checkpoint.config.temporal:
        lines.insert(4, _clip(checkpoint, weights, management.dtype_size(compute), width, height, frames))
    return lines


def _clip(checkpoint: Checkpoint, weights: int, item: int, width: int, height: int, frames: int) -> str:
    """Weights and activations of a clip, of which the sampler gives the network one window at a time."""
    window = window_length(trained_length(checkpoint.metadata), frames)
    total = weights + needed(checkpoint.config, window, height // 8, width // 8, item)
    windows = f", in windows of {window}" if window < frames else ""
    return f"about {_size(total)}, weights included, for {frames} frames of {width}x{height}{windows}"


# Names of tensors by which the host's loader tells what it can load, and what it makes of them; the most telling first.
HOSTS_MARKS = (
    (r"^lora_controlnet$", "ControlLora"),
    (r"(^|\.)zero_convs\.0\.|^controlnet_(cond_embedding|blocks)\.|^control_blocks\.|^after_proj_list\.", "ControlNet"),
    (r"^adapter\.|^body\.0\.(in_conv|block2)\.|^backbone\.(0|10)\.", "T2IAdapter"),
)


def describe_controlnet_file(path: str) -> list[str]:
    """What `describe_controlnet` says of the file, and its size; raises UNetFileError where it holds none that can be used."""
    network, file = find_controlnet(path), Path(path)
    name = f"{file.name}, {_size(file.stat().st_size)}"
    if network is None:
        return [*_hosts(file), name]
    opened = open_controlnet(path) if network is SVDControlNet else open_controlnext(path)
    return [*own_kind(opened.config), _millions(opened.parameters), name]


def _hosts(file: Path) -> list[str]:
    """The same of a file that is left to the host's loader."""
    shapes = shapes_of(open_any(file))
    kinds = [kind for mark, kind in HOSTS_MARKS if any(re.search(mark, name) for name in shapes)]
    if not kinds:
        raise UNetFileError(no_controlnet(file.name))
    widths = [shape[1] for name, shape in shapes.items() if name.endswith(("attn2.to_k.weight", "attn2.to_k.down"))]
    return [*hosts_kind(kinds[0], widths[0] if widths else None), _millions(sum(map(math.prod, shapes.values())))]


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M parameters"


def _size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
