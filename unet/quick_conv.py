"""Convolutions that may be computed in a quicker way than PyTorch's, where nothing looks at how."""

from types import MethodType

import torch
from torch import nn

from . import winograd
from .hooks import Own

CONV_FORWARD = nn.Conv2d._conv_forward  # as PyTorch has it


def has_other_padding(conv: nn.Conv2d) -> bool:
    """Packs that make images tile set another padding than zeros, or another `_conv_forward`: of a layer, or of PyTorch's class."""
    return conv.padding_mode != "zeros" or conv._conv_forward != MethodType(CONV_FORWARD, conv)


class QuickConv2d(Own, nn.Conv2d, own=True):
    """A convolution that runs by `winograd` where it can, and by `doubling` where that stands for its call.

    A host derives from it and from its own layer.
    """

    def is_plain(self) -> bool:
        """Whether a call convolves the input with the weight and the bias as they lie in the layer."""
        return True

    def runs_quickly(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
        """Whether `winograd` may and should compute what the layer makes of x with these weight and bias."""
        return winograd.takes(self, x, weight, bias) and not has_other_padding(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # the name that callers may use
        if self.is_plain() and self.runs_quickly(input, self.weight, self.bias):
            return winograd.convolved(input, self.weight, self.bias)
        return super().forward(input)
