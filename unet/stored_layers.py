"""Layers whose weights stay as they are stored, in any dtype or in GGUF's blocks, and become the input's dtype in each call."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from . import onednn, winograd
from .fused_linear import FusedLinear
from .quick_conv import QuickConv2d
from .weights.ggml_types import GGMLType, PackedTensor


class Stored(nn.Module):
    """A layer with a weight, and perhaps a bias, of any dtype."""

    weight: Any
    blocks: torch.Tensor
    kind: GGMLType | None = None  # of a packed weight, whose bytes are the `blocks`
    shape: tuple[int, ...] = ()

    def is_plain(self) -> bool:
        """Whether the layer holds a weight, and not blocks of it."""
        return self.kind is None

    def put(self, parameter: str, value: torch.Tensor | PackedTensor) -> None:
        """Takes the weight or the bias as it is."""
        self._parameters[parameter] = None
        if isinstance(value, PackedTensor):
            self.register_buffer("blocks", value.data)
            self.kind, self.shape = value.kind, value.shape
        else:
            self._parameters[parameter] = nn.Parameter(value, requires_grad=False)
            if parameter == "weight" and self.kind is not None:
                self.kind = None
                del self.blocks

    def cast(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight and the bias in the dtype of x."""
        bias = self._parameters.get("bias")
        values = self.weight if self.kind is None else PackedTensor(self.blocks, self.kind, self.shape).dequantize(x.dtype)
        return values.to(x.dtype), None if bias is None else bias.to(x.dtype)


class StoredLayers:
    """The classes that `UNetModel` takes as `operations`."""

    class Linear(Stored, FusedLinear, own=True):
        def forward(self, x):
            weight, bias = self.cast(x)
            return (onednn.linear if onednn.takes(onednn.linear, x, weight, bias) else F.linear)(x, weight, bias)

    class Conv2d(Stored, QuickConv2d, own=True):
        def forward(self, x):
            weight, bias = self.cast(x)
            if self.runs_quickly(x, weight, bias):
                return winograd.convolved(x, weight, bias)
            return self._conv_forward(x, weight, bias)

    class Conv3d(Stored, nn.Conv3d):
        def forward(self, x):
            return self._conv_forward(x, *self.cast(x))

    class GroupNorm(Stored, nn.GroupNorm):
        def forward(self, x):
            return F.group_norm(x, self.num_groups, *self.cast(x), self.eps)

    class LayerNorm(Stored, nn.LayerNorm):
        def forward(self, x):
            return F.layer_norm(x, self.normalized_shape, *self.cast(x), self.eps)

    class Embedding(Stored, nn.Embedding):
        def forward(self, index):
            weight, _ = self.cast(torch.empty((), dtype=torch.float32))
            return F.embedding(index, weight)
