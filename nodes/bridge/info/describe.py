"""What a model is, in lines."""

import logging

import comfy.controlnet

from ....unet import Checkpoint, ControlNetConfig, ControlNeXtConfig
from ....unet.weights.errors import printable
from ..control.pairing import CONTEXT_WIDTHS
from ..model.checkpoint_parts import CLIP, CLIP_VISION, VAE
from ..model.mixed_precision import counted, kept_in
from ..model.packed_weights import is_packed
from .lines import Line, Value, size, text_of

PART_KEYS = {CLIP: ("hasClip", "lacksClip"), VAE: ("hasVae", "lacksVae"), CLIP_VISION: ("hasClipVision", "lacksClipVision")}


def describe(checkpoint: Checkpoint, model, parts: list[str] | None = None) -> str:
    """Family, parameters, dtypes, file and memory of a MODEL that was loaded from `checkpoint`; `parts` as `parts_lines` takes."""
    kept, packed = kept_in(model.model.model_config), is_packed(model.model.diffusion_model)
    lines = unet_lines(checkpoint, model.model.get_dtype(), model.model.get_dtype_inference(), model.model_size(), kept, packed)
    if checkpoint.unexpected:
        logging.warning("%s: %s", checkpoint.path.name, lines[-1])
    return text_of(lines if parts is None else lines + parts_lines(checkpoint, parts))


def unet_lines(checkpoint: Checkpoint, dtype, compute, memory: int, kept: frozenset[str], packed: bool) -> list[Line]:
    """Family, parameters, file and memory of a UNet.

    Its weights are, or will be, stored as `dtype` in `memory` bytes and cast to `compute` for computing, but the `kept` ones (with
    `packed` those of a GGUF file) stay quantized as they are in the file.
    """
    lines = [
        Line("family", {"family": checkpoint.family.title}),
        parameters_line(checkpoint.parameters, dtype, compute),
        *quantized_lines(checkpoint, kept, packed),
        files_line(checkpoint),
        memory_line(memory),
    ]
    if checkpoint.unexpected:
        some = ", ".join(map(printable, checkpoint.unexpected[:3]))
        lines.append(Line("unused", {"count": len(checkpoint.unexpected), "names": some}))
    return lines


def quantized_lines(checkpoint: Checkpoint, kept: frozenset[str], packed: bool) -> list[Line]:
    """The formats of the weights that are quantized in the file: of those that stay so, and of those that do not."""
    if checkpoint.quantization:
        types = ", ".join(f"{kind} ({count})" for kind, count in checkpoint.quantization.items())
        lines = [Line("quantized" if packed else "dequantized", {"types": types})]
        return lines if checkpoint.dialect is None else [*lines, Line("dialect", {"dialect": checkpoint.dialect})]
    groups = {"quantized": kept, "dequantized": frozenset(checkpoint.quantized) - kept}
    return [Line(key, {"types": counted(checkpoint, names)}) for key, names in groups.items() if names]


def parts_lines(checkpoint: Checkpoint, parts: list[str]) -> list[Line]:
    """Which of CLIP, VAE and CLIP_VISION are in the file (`parts`), and which the model wants and the file lacks."""
    wanted = {VAE, CLIP_VISION if checkpoint.config.temporal else CLIP}
    return [Line(has if part in parts else lacks) for part, (has, lacks) in PART_KEYS.items() if part in wanted.union(parts)]


def parameters_line(parameters: int, dtype, compute) -> Line:
    """The number of weights, which are, or will be, stored as `dtype` and cast to `compute` for computing."""
    values: dict[str, Value] = {"count": round(parameters / 1e6, 1), "dtype": short(dtype)}
    return Line("parameters", values) if compute == dtype else Line("parametersComputed", {**values, "compute": short(compute)})


def file_line(path) -> Line:
    return Line("file", {"file": path.name, "size": size(path.stat().st_size)})


def files_line(checkpoint: Checkpoint) -> Line:
    """The file that the network was read from; of a folder of diffusers' layout which one in it, of a set how many."""
    first = next(iter(checkpoint.stamps))
    bytes_in_all = size(sum(stamp.size for stamp in checkpoint.stamps.values()))
    inside = first.is_relative_to(checkpoint.path) and first != checkpoint.path
    name = f"{checkpoint.path.name}/{first.relative_to(checkpoint.path).as_posix()}" if inside else checkpoint.path.name
    if len(checkpoint.stamps) == 1:
        return Line("file", {"file": name, "size": bytes_in_all})
    return Line("files", {"file": name, "count": len(checkpoint.stamps), "size": bytes_in_all})


def memory_line(memory: int) -> Line:
    return Line("memory", {"memory": size(memory)})


def own_kind(config: ControlNetConfig | ControlNeXtConfig) -> list[Line]:
    """The kind of a ControlNet that this pack runs itself, and how it acts, in lines."""
    if isinstance(config, ControlNeXtConfig):
        keys = ("controlNextV1", "beforeMiddle") if config.version == 1 else ("controlNextV2", "afterFirstLevel")
        return [*map(Line, keys), Line("ownUNet")]
    return list(map(Line, ("svdControlNet", "seesAllFrames") if config.temporal else ("svdControlNetSpatial", "seesEachFrame")))


def hosts_kind(class_name: str, context_width: int | None) -> list[Line]:
    """The kind of a ControlNet that the host runs, and how it acts, in lines; `context_width`: of the models that it is for."""
    kind = {"kind": class_name}
    if class_name == comfy.controlnet.T2IAdapter.__name__:
        return [Line("kind", kind), Line("sameAtEveryStep")]
    if context_width == 1024:
        return [Line("kindForSD2", kind), Line("seesEachImage")]
    family = CONTEXT_WIDTHS.get(context_width)
    first = Line("kindForImages", kind) if family is None else Line("kindFor", {**kind, "family": family})
    return [first, Line("seesEachImage")]


def short(dtype) -> str:
    return str(dtype).removeprefix("torch.")
