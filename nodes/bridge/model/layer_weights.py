"""The weights that layers of the host would use, for what is computed without a call of the layer."""

from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor

HOSTS_NORM = comfy.ops.disable_weight_init.GroupNorm
CASTS = [kind.forward_comfy_cast_weights for kind in (comfy.ops.disable_weight_init.Conv2d, comfy.ops.disable_weight_init.Conv3d)]


def _norm_functions():
    return torch.nn.GroupNorm.forward, HOSTS_NORM.forward, HOSTS_NORM.forward_comfy_cast_weights


UNTOUCHED = _norm_functions()


def norms_are_replaced() -> bool:
    """Has a pack put a function of its own into PyTorch's or the host's group norm, as AnimateDiff's do while they sample?"""
    return _norm_functions() != UNTOUCHED


def is_plain(layer: torch.nn.Module) -> bool:
    """Whether a call of a layer of `comfy.ops` uses the weight and the bias as they lie in it."""
    return not (layer.comfy_cast_weights or layer.weight_function or layer.bias_function)


def norm_affine(norm: torch.nn.GroupNorm, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias [c] of a norm of `comfy.ops`: patched, in `dtype` and on `device`, wherever they lie.

    Where the host casts them they are copies, since it uses that memory again.
    """
    if is_plain(norm) and norm.weight.dtype == norm.bias.dtype == dtype and norm.weight.device == device:
        return norm.weight, norm.bias
    weight, bias, stream = comfy.ops.cast_bias_weight(norm, dtype=dtype, bias_dtype=dtype, device=device, offloadable=True)
    copies = weight.clone(), bias.clone()
    comfy.ops.uncast_bias_weight(norm, weight, bias, stream)
    return copies


def convolution(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a convolution of `comfy.ops` makes of x without its bias, and the bias [c]; layer(x) and None for other kinds."""
    casts = isinstance(layer, comfy.ops.CastWeightBiasOp) and type(layer).forward_comfy_cast_weights in CASTS
    if not casts or isinstance(layer.weight, QuantizedTensor):
        return layer(x), None
    comfy.ops.run_every_op()  # ends an interrupted run
    if is_plain(layer):
        return layer._conv_forward(x, layer.weight, None), layer.bias
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    made, kept = layer._conv_forward(x, weight, None), bias.clone()
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return made, kept
