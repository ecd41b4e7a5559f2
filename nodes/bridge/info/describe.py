"""What a loaded model is, in words."""

import logging

import comfy.controlnet

from ....unet import Checkpoint, ControlNetConfig, ControlNeXtConfig
from ....unet.weights.errors import printable
from ..control.pairing import CONTEXT_WIDTHS
from ..node_names import LOAD_UNET


def describe(checkpoint: Checkpoint, model) -> str:
    """Family, parameters, dtypes, file and memory of a MODEL that was loaded from `checkpoint`."""
    lines = unet_lines(checkpoint, model.model.get_dtype(), model.model.get_dtype_inference(), model.model_size())
    if checkpoint.unexpected:
        logging.warning("%s: %s: %s", LOAD_UNET, checkpoint.path.name, lines[-1])
    return "\n".join(lines)


def unet_lines(checkpoint: Checkpoint, dtype, compute, memory: int) -> list[str]:
    """Family, parameters, file and memory of a UNet.

    Its weights are, or will be, stored as `dtype` in `memory` bytes and cast to `compute` for computing.
    """
    lines = [
        f"{checkpoint.family.title}",
        parameters_line(checkpoint.parameters, dtype, compute),
        f"{checkpoint.path.name}, {checkpoint.path.stat().st_size / 2**20:,.1f} MiB",
        memory_line(memory),
    ]
    if checkpoint.unexpected:
        some = ", ".join(map(printable, checkpoint.unexpected[:3]))
        lines.append(f"{len(checkpoint.unexpected)} tensors not used ({some}, …)")
    return lines


def parameters_line(parameters: int, dtype, compute) -> str:
    """The number of weights, which are, or will be, stored as `dtype` and cast to `compute` for computing."""
    computed = "" if compute == dtype else f", computed in {_short(compute)}"
    return f"{parameters / 1e6:,.1f} M parameters, {_short(dtype)}{computed}"


def memory_line(memory: int) -> str:
    return f"{memory / 2**20:,.1f} MiB in memory"


def own_kind(config: ControlNetConfig | ControlNeXtConfig) -> list[str]:
    """The kind of a ControlNet that this pack runs itself, and how it acts, in lines."""
    if isinstance(config, ControlNeXtConfig):
        where = "before the middle block" if config.version == 1 else "after the first level, on the conditioned half alone"
        return [
            "ControlNeXt-SVD v1" if config.version == 1 else "ControlNeXt-SVD v2 (a ControlNeXt-SDXL file looks the same)",
            f"one feature for every frame, {where}",
            "made for the SVD UNet that comes with it: load that one too",
        ]
    if config.temporal:
        return ["SVD ControlNet", "residuals for every frame, all frames seen together"]
    return ["SVD ControlNet, spatial only", "residuals for every frame, each seen by itself"]


def hosts_kind(class_name: str, context_width: int | None) -> list[str]:
    """The kind of a ControlNet that the host runs, and how it acts, in lines; `context_width`: of the models that it is for."""
    if class_name == comfy.controlnet.T2IAdapter.__name__:
        return [class_name, "the same residuals at every step, for every image or frame by itself"]
    family = CONTEXT_WIDTHS.get(context_width, "an image model")
    return [f"{class_name} for {family}", "residuals for every image or frame, each seen by itself"]


def _short(dtype) -> str:
    return str(dtype).removeprefix("torch.")
