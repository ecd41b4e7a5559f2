"""What a LoRA does to a MODEL, in lines."""

from collections.abc import Sequence

from ....unet.weights.errors import printable
from ....unet.weights.lora_file import LoRAFile
from ..model.lora_patches import Reached
from .describe import file_line
from .lines import Line, Value

NAMED = 3  # layers that a line names at most


def lora_lines(lora: LoRAFile, reached: Reached, temporal: bool, strength: float) -> list[Line]:
    """The file, how many of its layers act, and what does not, or not quite; `temporal`: has the model layers over time?"""
    over_time = sum(layer.temporal for layer in reached.layers.values())
    values: dict[str, Value] = {"reached": len(reached.layers), "count": reached.count, "strength": f"{strength:g}"}
    if temporal:
        acts = Line("loraOnVideo", {**values, "spatial": len(reached.layers) - over_time, "temporal": over_time})
    else:
        acts = Line("loraOnImages", values)
    return [file_line(lora.path), acts, *_left_out(lora, reached), *_differences(lora, reached, strength)]


def _left_out(lora: LoRAFile, reached: Reached) -> list[Line]:
    named = {
        "loraNotInModel": reached.not_in_model, "loraOtherShape": reached.other_shape, "loraNotComputed": reached.not_computed,
        "loraUnknown": lora.unknown,
    }
    lines = [Line(key, {"count": len(names), "names": some(names)}) for key, names in named.items() if names]
    return lines + [Line("loraTextEncoder", {"count": len(lora.text_encoder)})] * bool(lora.text_encoder)


def _differences(lora: LoRAFile, reached: Reached, strength: float) -> list[Line]:
    """Where the host's result is not, or may not be, what the LoRA was trained to give."""
    lines = []
    if any(map(lora.lacks_alpha, reached.layers)):
        lines.append(Line("loraNoAlpha"))
    shapes = {name: lora.parameter_shapes(name) for name in reached.layers}
    counts = {  # line -> layers
        "loraDora": sum(shapes[name].get("dora_scale", (0,))[0] == layer.weight[0] for name, layer in reached.layers.items()),
        "loraOft": sum("oft_blocks" in parameters for parameters in shapes.values()) * (strength != 1),
        "loraRescale": sum("rescale" in parameters and len(parameters["oft_blocks"]) == 3 for parameters in shapes.values()),
    }
    return lines + [Line(key, {"count": count}) for key, count in counts.items() if count]


def some(names: Sequence[str]) -> str:
    """The first of these names."""
    return ", ".join(map(printable, names[:NAMED])) + ", …" * (len(names) > NAMED)
