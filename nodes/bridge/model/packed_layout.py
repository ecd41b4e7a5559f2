"""GGUF weights as a kind of the host's own quantized tensor; imported only where comfy-kitchen, which brings it, is there."""

from dataclasses import dataclass

import torch
from comfy_kitchen.tensor.base import BaseLayoutParams, QuantizedLayout, QuantizedTensor, register_layout_class

from ....unet.weights.ggml_types import PackedTensor, dequantize, ggml_type

LAYOUT = f"TemporalUNetGGUF {__name__}"  # of this copy of the pack: the host looks layouts up by name


@dataclass(frozen=True)
class PackedParams(BaseLayoutParams):
    """What the host carries along with the bytes. `scale` is one that every layout has; ours has its scales in the blocks."""

    kind: str  # a name of `ggml_types.TYPES`


class GGUFLayout(QuantizedLayout):
    """The bytes of a GGUF file. `orig_dtype`, which `.to(dtype)` sets, is the dtype that the values are dequantized to."""

    Params = PackedParams

    @classmethod
    def quantize(cls, tensor, **kwargs):
        raise NotImplementedError("GGUF weights are only read: nothing is quantized to them again")

    @classmethod
    def dequantize(cls, qdata, params):
        return dequantize(qdata, params.kind, params.orig_shape, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor):
        return (qtensor._qdata,)

    @classmethod
    def state_dict_tensors(cls, qdata, params):
        """What the host collects to save: the values."""
        return {"": cls.dequantize(qdata, params)}


register_layout_class(LAYOUT, GGUFLayout)


def as_hosts(packed: PackedTensor, dtype: torch.dtype) -> QuantizedTensor:
    """A packed weight as a tensor that the host counts, moves and offloads by its bytes; it computes in `dtype`."""
    params = PackedParams(scale=torch.ones(()), orig_dtype=dtype, orig_shape=tuple(packed.shape), kind=packed.kind.name)
    return QuantizedTensor(packed.data, LAYOUT, params)


def as_stored(weight: QuantizedTensor) -> PackedTensor | None:
    """A weight of this layout as it was in the file; None of another kind of quantized tensor."""
    params = weight.params
    return PackedTensor(weight._qdata, ggml_type(params.kind), tuple(weight.shape)) if isinstance(params, PackedParams) else None
