"""A LoRA onto a MODEL of the family: its layers under the names of the network, then the host's own adapters for their weights."""

from dataclasses import dataclass

import comfy.lora
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel as HostsUNet

from ....unet import UNetFileError, UNetModel
from ....unet.weights.errors import shorten
from ....unet.weights.lora_file import LoRAFile, twice
from ....unet.weights.lora_shapes import fits
from ..node_names import LOAD_LORA as NODE
from .lora_names import Layer, layers_by_name

# Parameters that the host misreads where they have five dimensions, as for kernels over frames. It computes what they stand for
# where all dimensions from this one on are one.
FLAT = {"lokr_w2": 1, "hada_t1": 3, "hada_t2": 3}


@dataclass(frozen=True)
class Reached:
    """What of a LoRA acts on a MODEL, by the names of layers in the file, and what does not."""

    layers: dict[str, Layer]
    not_in_model: list[str]
    other_shape: list[str]
    not_computed: list[str]  # the host would leave them as they are

    @property
    def count(self) -> int:
        """Layers of the LoRA."""
        return len(self.layers) + len(self.not_in_model) + len(self.other_shape) + len(self.not_computed)


def with_lora(model, lora: LoRAFile, strength: float) -> tuple[object, Reached]:
    """A clone of a MODEL with the LoRA on it, and what of it acts.

    Raises ValueError for a MODEL of another family, and UNetFileError where no layer of the LoRA fits it.
    """
    network = model.model.diffusion_model
    if not isinstance(network, (HostsUNet, UNetModel)):
        raise ValueError(
            f"{NODE}: the network of this MODEL is {type(network).__name__}, expected a UNet of Stable Diffusion 1, 2, XL or "
            f"Stable Video Diffusion. Use ComfyUI's node Load LoRA for it."
        )
    reached = find_layers(lora, layers_by_name(network))
    if not reached.layers:
        raise UNetFileError(f"{lora.path.name}: {_nothing(lora, reached)}")
    tensors = {
        f"{layer.path}.{parameter}": tensor
        for name, layer in reached.layers.items()
        for parameter, tensor in for_host(lora.read(name), layer).items()
    }
    patches = comfy.lora.load_lora(tensors, {layer.path: layer.key for layer in reached.layers.values()}, log_missing=False)
    model = model.clone()
    model.add_patches(patches, strength)
    return model, reached


def find_layers(lora: LoRAFile, table: dict[str, Layer]) -> Reached:
    """Which layers of the table those of a LoRA are; raises UNetFileError where two of them are the same one."""
    reached = Reached({}, [], [], [])
    taken: dict[str, str] = {}
    for name, parameters in lora.layers.items():
        layer = table.get(name)
        if layer is None:
            reached.not_in_model.append(name)
            continue
        key = next(iter(parameters.values()))
        if layer.key in taken:
            raise UNetFileError(f"{lora.path.name}: {twice(taken[layer.key], key)}")
        taken[layer.key] = key
        if "lokr_t2" in parameters:
            reached.not_computed.append(name)
        elif fits(lora.parameter_shapes(name), layer.weight, layer.bias):
            reached.layers[name] = layer
        else:
            reached.other_shape.append(name)
    return reached


def _nothing(lora: LoRAFile, reached: Reached) -> str:
    """Why a LoRA acts on no layer of a MODEL, and what to do."""
    if not reached.count:
        return (
            f"it holds {len(lora.text_encoder)} keys for a text encoder and none for a UNet. Use ComfyUI's node Load LoRA (Model "
            f"and CLIP) for it."
        )
    found = [
        f"{len(names)} {what} ({shorten(names[0])}, …)"
        for names, what in (
            (reached.other_shape, "of another shape"), (reached.not_in_model, "that this model does not have"),
            (reached.not_computed, "of LoKr with lokr_t2, which ComfyUI cannot compute"),
        )
        if names
    ]
    return (
        f"none of its {reached.count} layers can act on this model: {' and '.join(found)}. Load the model that it was made for, or "
        f"choose another LoRA."
    )


def for_host(tensors: dict[str, torch.Tensor], layer: Layer) -> dict[str, torch.Tensor]:
    """A layer's parameters in the shapes that the host's adapters compute rightly with; the values stay as they are."""
    shaped = {name: tensor.flatten(FLAT[name]) if name in FLAT and tensor.ndim == 5 else tensor for name, tensor in tensors.items()}
    scale = shaped.get("dora_scale")
    if scale is not None and scale.ndim == 1:  # PEFT's, of the rows
        shaped["dora_scale"] = scale.reshape(-1, *[1] * (len(layer.weight) - 1))
    if "oft_blocks" in shaped:
        shaped.setdefault("alpha", torch.zeros(()))  # no constraint, which the host's BOFT does not take from a missing one
    return shaped


def is_video(model) -> bool:
    """Has the MODEL layers over time?"""
    return bool(model.model.model_config.unet_config.get("use_temporal_attention"))
