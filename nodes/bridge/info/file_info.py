"""What a model file is, in words, before it is loaded: told from its header alone."""

import math
import re
from pathlib import Path

import comfy.model_management as management

from ....unet import (
    Checkpoint,
    SVDControlNet,
    UNetFileError,
    find_controlnet,
    open_checkpoint,
    open_controlnet,
    open_controlnext,
)
from ....unet.weights.detect import other_kind
from ....unet.weights.files import main_dtype, open_any, shapes_of
from ..control.svd_control import control_dtypes
from ..model.memory_budget import needed
from ..model.trained_length import trained_length, window_length
from ..model.unet_loader import choose_config
from ..node_names import LOAD_CONTROLNET
from .describe import hosts_kind, memory_line, own_kind, parameters_line, unet_lines


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


def describe_controlnet_file(path: str, control=None) -> list[str]:
    """What kind of ControlNet the file holds, how it acts, its numbers and size; `control`: what the host made of it, if it has.

    Raises UNetFileError where it holds none that can be used.
    """
    network, file = find_controlnet(path), Path(path)
    name = f"{file.name}, {_size(file.stat().st_size)}"
    if network is None:
        return [*_hosts(file, control), name]
    opened = open_controlnet(path) if network is SVDControlNet else open_controlnext(path)
    dtype, compute = control_dtypes(opened)
    memory = opened.parameters * management.dtype_size(dtype)
    return [*own_kind(opened.config), parameters_line(opened.parameters, dtype, compute or dtype), name, memory_line(memory)]


def _hosts(file: Path, control) -> list[str]:
    """The same of a file that is left to the host's loader, which alone knows what dtype it takes."""
    opened = open_any(file)
    shapes = shapes_of(opened)
    kinds = [kind for mark, kind in HOSTS_MARKS if any(re.search(mark, name) for name in shapes)]
    if control is not None:
        kinds = [type(control).__name__]
    if not kinds:
        raise UNetFileError(no_controlnet(file))
    widths = [shape[1] for name, shape in shapes.items() if name.endswith(("attn2.to_k.weight", "attn2.to_k.down"))]
    dtype = main_dtype(opened, shapes)
    numbers = sum(map(math.prod, shapes.values()))
    return [*hosts_kind(kinds[0], widths[0] if widths else None), f"{parameters_line(numbers, dtype, dtype)} in the file"]


def no_controlnet(file: Path) -> str:
    """The error for a file that neither we nor the host can load as a ControlNet."""
    other = other_kind(shapes_of(open_any(file)))
    found = "holds no ControlNet that can be used here. Choose a ControlNet, ControlLoRA or T2I-Adapter file."
    if other is not None:
        found = f"it holds {other[0]}, not a ControlNet. {other[1]}"
    return f"{LOAD_CONTROLNET}: {file.name}{':' if other else ''} {found}"


def _size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
