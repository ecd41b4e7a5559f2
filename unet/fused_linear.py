"""Linear layers and what follows them, in one kernel where a layer offers that.

A host's layers may cast, patch, quantize or fetch their weights as they are called, and packs hang hooks on them. So a fused form
is taken only where the layer says that a call of it is nothing but x W^T + b, and where nothing looks at the call.
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import nn

from . import card_kernels, onednn
from .hooks import Own, may_bypass


class FusedLinear(Own, nn.Linear, own=True):
    """A linear layer that runs by `onednn` where it can; a host derives from it and from its own layer."""

    def is_plain(self) -> bool:
        """Whether a call computes F.linear of the input, the weight and the bias as they lie in the layer."""
        return True

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # the name that callers may use
        if self.is_plain() and onednn.takes(onednn.linear, input, self.weight, self.bias):
            return onednn.linear(input, self.weight, self.bias)
        return super().forward(input)


def fuses(layer: nn.Module, form: Callable, x: torch.Tensor) -> TypeGuard[FusedLinear]:
    """Whether `form` of `onednn`, given the layer's weight and bias, may stand for a call of it on x."""
    return (
        x.is_cpu and isinstance(layer, FusedLinear) and may_bypass(layer, type(layer)) and layer.is_plain()
        and onednn.takes(form, x, layer.weight, layer.bias)
    )


def gated(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """value * gelu(gate) with the exact GELU (Shazeer 2020); value and gate are the two halves of what the layer makes of x."""
    if fuses(layer, onednn.gelu, x) and onednn.pays(onednn.times):
        (weight, gate_weight), (bias, gate_bias) = layer.weight.chunk(2), layer.bias.chunk(2)
        return onednn.times(x, weight, bias, onednn.gelu(x, gate_weight, gate_bias))
    return card_kernels.geglu(layer(x))


def added(layer: nn.Module, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """residual + layer(x)."""
    if fuses(layer, onednn.plus, x):
        return onednn.plus(x, layer.weight, layer.bias, residual)
    return residual + layer(x)
