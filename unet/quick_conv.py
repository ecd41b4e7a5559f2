"""Convolutions that may be computed in a quicker way than PyTorch's, where nothing looks at how."""

import torch
from torch import nn

from . import winograd
from .hooks import Own


class QuickConv2d(Own, nn.Conv2d, own=True):
    """A convolution that runs by `winograd` where it can, and by `doubling` where that stands for its call.

    A host derives from it and from its own layer.
    """

    def is_plain(self) -> bool:
        """Whether a call convolves the input with the weight and the bias as they lie in the layer."""
        return True

    def pads_with_zeros(self) -> bool:
        """Packs that make images tile set another padding, or another `_conv_forward`."""
        own = "_conv_forward" in vars(self) or type(self)._conv_forward is not nn.Conv2d._conv_forward
        return self.padding_mode == "zeros" and not own

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # the name that callers may use
        if self.is_plain() and self.pads_with_zeros() and winograd.takes(self, input):
            return winograd.convolved(input, self.weight, self.bias)
        return super().forward(input)
