"""Doubling an image and convolving it, as one transposed convolution of the small image.

Nearest-neighbor doubling repeats each pixel in a square of 2x2, so that a 3x3 convolution multiplies a pixel up to four times. With
these weights summed beforehand, each pixel of the result takes 2x2 products instead of 3x3.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from .hooks import may_bypass
from .quick_conv import QuickConv2d, has_other_padding

PIXELS = 512  # of the small images together: with fewer, summing the weights costs more than it saves
# Along one axis, the taps of the transposed convolution (stride 2, padding 1) by those of the convolution of 3.
ALONG = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
SUMS = torch.kron(ALONG, ALONG)  # [16, 9]


def doubles(conv: nn.Module, x: torch.Tensor, size: tuple[int, ...]) -> TypeGuard[QuickConv2d]:
    """Whether `doubled` may and should stand for a call of `conv` on x [n, c, h, w] repeated to `size`.

    In fp32 on a CPU, where it was measured: half precision would round the sums.
    """
    return (
        isinstance(conv, QuickConv2d) and may_bypass(conv, type(conv)) and conv.is_plain() and not has_other_padding(conv)
        and tuple(size) == (2 * x.shape[2], 2 * x.shape[3]) and x.numel() >= PIXELS * x.shape[1]
        and x.device.type == conv.weight.device.type == "cpu" and x.dtype == conv.weight.dtype == torch.float32
        and type(conv.weight) is nn.Parameter and not torch.is_autocast_enabled("cpu")
    )


def doubling_weight(conv: QuickConv2d) -> torch.Tensor:
    """The weight [c, c_out, 4, 4] for `doubled`."""
    return (conv.weight.flatten(2) @ SUMS.T).unflatten(2, (4, 4)).transpose(0, 1)


def doubled(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The 3x3 convolution of x [n, c, h, w] after each pixel was repeated in a square of 2x2: [n, c_out, 2h, 2w]."""
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
