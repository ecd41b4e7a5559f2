"""Layers that hold GGUF weights: dequantized as a layer is called, patched in float, counted by their bytes.

The host has one kind of quantized tensor, which it moves, offloads and maps on both of its ways to load. What it would do with a
patch of one is in `float_patches.py`.
"""

import copy
from math import prod

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import nn

from ....unet import onednn
from ....unet.hooks import Own
from ....unet.weights.ggml_types import TYPES, PackedTensor, is_quantized
from ....unet.weights.network_file import NetworkFile
from .float_patches import PatchedInFloat


class PackedLayer(PatchedInFloat, Own, own=True):
    """Comes before a layer class of the host; a layer whose weight is plain, or has become plain by a patch, is that class."""

    @property
    def packed(self) -> bool:
        return isinstance(self.weight, QuantizedTensor)

    def is_plain(self):
        return not self.packed and super().is_plain()  # type: ignore[misc]  # a layer that asks for it has it

    def forward(self, input: torch.Tensor, *args, **kwargs) -> torch.Tensor:  # noqa: A002  # the name that callers may use
        if not self.packed:
            return super().forward(input, *args, **kwargs)  # type: ignore[misc]  # the class that comes after
        comfy.ops.run_every_op()  # ends an interrupted run
        weight, bias, stream = comfy.ops.cast_bias_weight(self, input, offloadable=True)
        values = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        out = self.computed(input, values, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out

    def computed(self, x, weight, bias):
        return self._conv_forward(x, weight, bias)  # type: ignore[operator]  # of both convolutions

    def convert_weight(self, weight, inplace=False, **kwargs):
        """What the host patches: the values of a packed weight, in the dtype that it asked for."""
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def _apply(self, fn, recurse=True):
        """PyTorch would swap a moved weight into the old one, which fails as soon as a compiler holds on to that."""
        if not self.packed:
            return super()._apply(fn, recurse)
        weight, self._parameters["weight"] = self.weight, None
        super()._apply(fn, recurse)
        self._parameters["weight"] = nn.Parameter(fn(weight), requires_grad=False)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """Without the copy that the detach of a packed weight makes: the host asks for all once for each weight that it patches."""
        if not self.packed:
            return super()._save_to_state_dict(destination, prefix, keep_vars)
        weight, self._parameters["weight"] = self.weight, None
        destination[f"{prefix}weight"] = weight
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._parameters["weight"] = weight
        return None

    def __deepcopy__(self, memo):
        """PyTorch's own copy does not know the storage of a quantized tensor."""
        if self.packed:
            memo[id(self.weight)] = nn.Parameter(self.weight.clone(), requires_grad=False)
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made


def is_packed(network: nn.Module) -> bool:
    """Does a network hold GGUF weights as they are in the file?"""
    return any(isinstance(layer, PackedLayer) for layer in network.modules())


def packed_values(weight: torch.Tensor) -> PackedTensor | None:
    """A GGUF weight of such a layer as it was in the file, where it lies; None of any other weight."""
    if not isinstance(weight, QuantizedTensor):
        return None
    from .packed_layout import as_stored

    return as_stored(weight)


def packed_bytes(checkpoint: NetworkFile, dtype: torch.dtype) -> int:
    """What the network's weights take in memory where those of more than one dimension stay packed, others being of `dtype`."""
    size = 0
    for on_disk in checkpoint.names.values():
        name, shape = checkpoint.dtypes[on_disk], checkpoint.shapes[on_disk]
        packed = is_quantized(name) and len(shape) > 1
        size += TYPES[name].size(prod(shape)) if packed else prod(shape) * dtype.itemsize
    return size


def with_packed_layers(operations):
    """The host's layer classes, of which those with large weights also hold packed ones."""

    class Operations(operations):
        class Linear(PackedLayer, operations.Linear, own=True):
            def computed(self, x, weight, bias):
                fast = onednn.takes(onednn.linear, x, weight, bias)
                return (onednn.linear if fast else nn.functional.linear)(x, weight, bias)

        class Conv2d(PackedLayer, operations.Conv2d, own=True):
            pass

        class Conv3d(PackedLayer, operations.Conv3d, own=True):
            pass

    return Operations


def load_weights(network: nn.Module, weights: dict[str, torch.Tensor | PackedTensor], dtype: torch.dtype) -> None:
    """Puts weights into a network on the meta device as they are; packed ones that no layer holds are dequantized to `dtype`."""
    from .packed_layout import as_hosts

    for name, weight in weights.items():
        if isinstance(weight, PackedTensor):
            layer, _, parameter = name.rpartition(".")
            holds = parameter == "weight" and isinstance(network.get_submodule(layer), PackedLayer)
            weights[name] = as_hosts(weight, dtype) if holds else weight.dequantize(dtype)
    network.load_state_dict(weights, assign=True)
