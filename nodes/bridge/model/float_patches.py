"""Quantized layers of the host whose patches (LoRA, merging, hooks) act on floats, exactly, and are saved as floats.

The host's own would quantize a patched weight again, list scales as weights that could be patched, and fail on both in hooks.
"""

from functools import cache
from typing import Any

import comfy.model_base
import comfy.model_patcher
import torch
from comfy.quant_ops import QuantizedTensor
from torch import nn

KEPT = issubclass(QuantizedTensor, torch.Tensor)  # without comfy-kitchen the host has an empty class of this name


class PatchedInFloat(nn.Module):
    """Comes before a mixed-precision layer of the host; what it is given to patch are its weight's values (`convert_weight`)."""

    weight: Any
    _patch = None  # of the dynamic way to load
    _functions: Any = ()
    state_dict = nn.Module.state_dict  # of the weight and the bias alone

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}input_scale", None)

    def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **kwargs):
        """Takes a patched weight; the host keeps the quantized one and puts it back.

        `inplace_update`: a hook of the host patches. It puts the quantized one back by a copy into what is there then.
        """
        weight = weight.to(self.weight.dtype)
        if return_weight:
            return weight
        self.weight = Hooked(weight, requires_grad=False) if inplace_update else nn.Parameter(weight, requires_grad=False)
        if inplace_update:
            self.weight.layer = self
        return None

    @property
    def weight_lowvram_function(self):
        """The dynamic way to load: None, since the host would quantize a weight that it patches by this again, and keep that."""
        return None if isinstance(self.weight, QuantizedTensor) else self._patch

    @weight_lowvram_function.setter
    def weight_lowvram_function(self, function):
        self._patch = function

    @property
    def weight_function(self):
        """What the host applies to the dequantized weight in each call."""
        dynamic = self._patch is not None and isinstance(self.weight, QuantizedTensor) and hasattr(self, "_v")
        return [self._patch, *self._functions] if dynamic else self._functions

    @weight_function.setter
    def weight_function(self, functions):
        self._functions = functions


class Hooked(nn.Parameter):
    """A weight that a hook patched: what the host copies into it takes its place in the layer."""

    layer: PatchedInFloat

    @property
    def data(self):
        return _Place(self.layer)

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]  # a descriptor, which its stub does not show


class _Place:
    def __init__(self, layer: PatchedInFloat):
        self.layer = layer

    def copy_(self, weight):
        self.layer.weight = nn.Parameter(weight, requires_grad=False)


class SavesFloats(comfy.model_base.BaseModel):
    """Comes before the host's class of a model; `saves_floats` makes it so."""

    def state_dict_for_saving(self, weights: dict, *args, **kwargs):
        floats = {}
        for name in weights:
            layer = self.diffusion_model.get_submodule(name.rpartition(".")[0])
            if name.endswith(".weight") and isinstance(layer, PatchedInFloat) and isinstance(layer.weight, QuantizedTensor):
                floats[name] = Values(layer)
        return super().state_dict_for_saving({**weights, **floats}, *args, **kwargs)


def saves_floats(model) -> None:
    """Has what the host saves of a model (Save Checkpoint, Save Model) hold the values of quantized weights, without scales.

    By its class: a function kept in the model that knows the model would hold it in memory until all garbage is collected.
    """
    model.__class__ = _saving_floats(type(model))  # type: ignore[arg-type]  # mypy: no class is Hashable


@cache
def _saving_floats(kind: type) -> type:
    return type(kind.__name__, (SavesFloats, kind), {})


class Values(nn.Parameter):
    """The values of a layer's quantized weight with the patches that the host applies in each call; made when they are written.

    The host's own way: safetensors moves what is not on the CPU there, tensor by tensor.
    """

    def __new__(cls, layer: PatchedInFloat):
        return super().__new__(cls, torch.empty(layer.weight.shape, dtype=layer.weight.dtype, device="meta"), requires_grad=False)

    def __init__(self, layer: PatchedInFloat):
        self.layer = layer

    @property
    def device(self):
        return comfy.model_patcher.CustomTorchDevice

    def to(self, *args, **kwargs):
        values = self.layer.weight.to(torch.float32).dequantize()
        for function in self.layer.weight_function:
            values = function(values)
        return values.to("cpu", self.layer.weight.dtype)
