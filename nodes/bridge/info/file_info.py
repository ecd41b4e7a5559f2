"""What a model file is, before it is loaded: read from its header alone."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as management

from ....unet import (
    FAMILIES,
    Checkpoint,
    ControlNetFile,
    ControlNeXt,
    ControlNeXtFile,
    SVDControlNet,
    UNetFileError,
    find_controlnet,
    open_checkpoint,
    open_controlnet,
    open_controlnext,
)
from ....unet.weights.files import main_dtype, open_any, shapes_of
from ....unet.weights.kinds import other_kind
from ..control.own_controlnet import control_dtypes
from ..control.pairing import families_of
from ..model.checkpoint_parts import parts_in
from ..model.memory_budget import needed
from ..model.mixed_precision import kept_in, weight_bytes
from ..model.packed_weights import packed_bytes
from ..model.trained_length import trained_length, window_length
from ..model.unet_loader import choose_config, stays_packed
from .describe import file_line, hosts_kind, memory_line, own_kind, parameters_line, parts_lines, short, unet_lines
from .lines import Line


@dataclass(frozen=True)
class Clip:
    """A clip to be sampled: its size in pixels, its frames, and those of a window (0: as many as the model was trained on)."""

    width: int
    height: int
    frames: int
    window_frames: int


def unet_file_info(path: str, model_options: dict, clip: Clip) -> dict:
    """What is known of the MODEL that `model_options` make of a file, as data for the browser:

        lines: what `describe` says of the loaded MODEL
        family, family_title: of `unet.FAMILIES`
        device_bytes: the memory of the device that will compute
        clip: for a video model, what a clip takes: bytes (weights included), its frames, width and height in pixels, and
            window, the number of frames that the sampler gives the network at a time

    Raises UNetFileError, as loading does, where the file is no whole UNet of the family.
    """
    return _about(open_checkpoint(path), model_options, clip)


def checkpoint_file_info(path: str, model_options: dict, clip: Clip) -> dict:
    """`unet_file_info` of a full checkpoint, with lines about the other parts in it."""
    checkpoint = open_checkpoint(path)
    info = _about(checkpoint, model_options, clip)
    return {**info, "lines": info["lines"] + [line.data() for line in parts_lines(checkpoint, parts_in(checkpoint))]}


def _about(checkpoint: Checkpoint, model_options: dict, clip: Clip) -> dict:
    config = choose_config(checkpoint, model_options)
    dtype = config.unet_config["dtype"]
    compute = config.manual_cast_dtype or dtype
    kept = kept_in(config)
    packed = stays_packed(checkpoint, model_options, config)
    weights = packed_bytes(checkpoint, dtype) if packed else weight_bytes(checkpoint, kept, dtype)
    info: dict[str, Any] = {
        "lines": [line.data() for line in unet_lines(checkpoint, dtype, compute, weights, kept, packed)],
        "family": checkpoint.family.name, "family_title": checkpoint.family.title,
        "device_bytes": int(management.get_total_memory(management.get_torch_device())),
    }
    if checkpoint.config.temporal:
        window = window_length(clip.window_frames or trained_length(checkpoint.metadata), clip.frames)
        memory = weights + needed(checkpoint.config, window, clip.height // 8, clip.width // 8, management.dtype_size(compute))
        about = {"bytes": int(memory), "frames": clip.frames, "width": clip.width, "height": clip.height, "window": window}
        info["clip"] = about
    return info


# Names of tensors by which the host's loader decides what a file is, and the class that it loads it as; the surest first.
HOSTS_MARKS = (
    (r"^lora_controlnet$", "ControlLora"),
    (r"(^|\.)zero_convs\.0\.|^controlnet_(cond_embedding|blocks)\.|^control_blocks\.|^after_proj_list\.", "ControlNet"),
    (r"^adapter\.|^body\.0\.(in_conv|block2)\.|^backbone\.(0|10)\.", "T2IAdapter"),
)


OPENERS: dict[type, Callable[[str], ControlNetFile | ControlNeXtFile]] = {  # of our networks
    SVDControlNet: open_controlnet, ControlNeXt: open_controlnext,
}


def controlnet_file_info(path: str) -> dict:
    """What is known of a ControlNet file, as data for the browser: its lines, and the families that it is for (none: unknown)."""
    about = look_at_controlnet(path)
    return {"lines": [line.data() for line in about.lines], "families": about.families}


def describe_controlnet_file(path: str, control=None) -> list[str]:
    """`look_at_controlnet`'s lines as texts."""
    return list(map(str, look_at_controlnet(path, control).lines))


@dataclass(frozen=True)
class AboutControlNet:
    lines: list[Line]
    families: list[str]  # names in `unet.FAMILIES`


def look_at_controlnet(path: str, control=None) -> AboutControlNet:
    """The kind of ControlNet in the file, how it acts, its parameters and size, in lines, and which models it is for.

    `control`: what the host's loader made of the file, if it has loaded it.
    Raises UNetFileError where it holds none that can be used.
    """
    network, file = find_controlnet(path), Path(path)
    if network is None:
        return _hosts(file, control)
    opened = OPENERS[network](path)
    dtype, compute = control_dtypes(opened)
    memory = opened.parameters * management.dtype_size(dtype)
    sizes = [parameters_line(opened.parameters, dtype, compute or dtype), file_line(file), memory_line(memory)]
    return AboutControlNet([*own_kind(opened.config), *sizes], [family.name for family in FAMILIES if family.match["temporal"]])


def _hosts(file: Path, control) -> AboutControlNet:
    """Of a file that the host's loader loads, which alone decides the dtype."""
    opened = open_any(file)
    shapes = shapes_of(opened)
    kinds = [kind for mark, kind in HOSTS_MARKS if any(re.search(mark, name) for name in shapes)]
    if control is not None:
        kinds = [type(control).__name__]
    if not kinds:
        raise UNetFileError(no_controlnet(file))
    ends = ("attn2.to_k.weight", "attn2.to_k.down")
    width = next((shape[1] for name, shape in shapes.items() if len(shape) > 1 and name.endswith(ends)), None)
    millions = round(sum(map(math.prod, shapes.values())) / 1e6, 1)
    held = Line("parametersInFile", {"count": millions, "dtype": short(main_dtype(opened, shapes))})
    return AboutControlNet([*hosts_kind(kinds[0], width), held, file_line(file)], families_of(width))


def no_controlnet(file: Path) -> str:
    """The error for a file that neither we nor the host can load as a ControlNet."""
    other = other_kind(shapes_of(open_any(file)))
    found = "holds no ControlNet that can be used here. Choose a ControlNet, ControlLoRA or T2I-Adapter file."
    if other is not None:
        found = f"it holds {other[0]}, not a ControlNet. {other[1]}"
    return f"{file.name}{':' if other else ''} {found}"
