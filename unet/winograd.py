"""3x3 convolutions in four ninths of the products: F(2x2, 3x3) of Lavin & Gray 2015 (arXiv 1509.09308, section 4.1).

Each square of 2x2 results is made of the 4x4 pixels around it. Along each axis four sums of the pixels, multiplied by four sums of
the three weights, give the two results. So 16 products of matrices, one for each place in the square, stand for the convolution.
The sums add rounding of about that of the convolution itself.
"""

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from . import onednn
from .probes import Probe

CHANNELS = 256  # in and out, at least: with fewer, the sums cost more than the products save
SQUARES = 128  # of results, at least: with fewer, the sums of the weights cost more
AT_A_TIME = 1024  # squares: what is made of them stays in the cache
WEIGHT_BYTES = 28 * 2**20  # of summed weights at a time: the allocator maps larger blocks again each time, and their pages fault
SHARE = 0.9  # of the convolution's time, at most, in the probe
PROBED = (1, 640, 32, 32)

ALONG = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # sums of the weights along one axis
SUMS = torch.kron(ALONG, ALONG)  # [16, 9]


def takes(conv: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `convolved` may and should stand for this layer, with these weight and bias, of x."""
    return (
        onednn.are_plain(x, weight, bias)  # first: a compiler would ask for each parity of the sizes again
        and conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1 and x.ndim == 4
        and weight.shape[1:] == (x.shape[1], 3, 3) and min(weight.shape[:2]) >= CHANNELS
        and x.shape[2] % 2 == x.shape[3] % 2 == 0 and x[:, 0].numel() >= 4 * SQUARES and pays()
    )


def pays() -> bool:
    """Whether this process takes `convolved`: see `Probe`."""
    return PROBE.pays()


def convolved(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The 3x3 convolution, padded with zeros, of x [n, c, h, w] of even sizes by weight [c_out, c, 3, 3]: [n, c_out, h, w]."""
    out = x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])
    for images, rows in _places(x):
        sums = _summed_pixels(x[images], rows)
        made = out[images, :, 2 * rows.start:2 * rows.stop].transpose(0, 1)
        channels = max(1, WEIGHT_BYTES // (SUMS.shape[0] * weight.shape[1] * weight.element_size()))
        for some in (slice(start, start + channels) for start in range(0, weight.shape[0], channels)):
            _multiplied(sums, weight[some], None if bias is None else bias[some], made[some])
    return out


def _places(x) -> Iterator[tuple[slice, slice]]:
    """(images, rows of squares) that together make about so many squares as are computed at a time."""
    count, height, width = x.shape[0], x.shape[2] // 2, x.shape[3] // 2
    images, rows = max(1, AT_A_TIME // (height * width)), max(1, min(height, AT_A_TIME // width))
    for image in range(0, count, images):
        for row in range(0, height, rows):
            yield slice(image, min(image + images, count)), slice(row, min(row + rows, height))


def _summed_pixels(x, rows) -> list[torch.Tensor]:
    """For each of the 16 places in a square of 4x4 pixels the sums [c, n * rows * squares in a row] of x [n, c, h, w]."""
    count, channels, height, width = x.shape
    above, squares = 2 * rows.start - 1, width // 2
    # Of the padded image the even and odd rows, and the even and odd columns of these.
    apart = x.new_zeros(2, 2, channels, count, rows.stop - rows.start + 1, squares + 1)
    for odd in range(2):
        first = above + odd + 2 * (above + odd < 0)
        own = x[:, :, first:min(2 * rows.stop + odd, height):2].transpose(0, 1)
        skipped = (first - above) // 2
        into = apart[odd, :, :, :, skipped:skipped + own.shape[2]]
        into[0, ..., 1:].copy_(own[..., 1::2])
        into[1, ..., :-1].copy_(own[..., ::2])
    return [
        total.reshape(channels, -1)
        for row in _sums([apart[0, ..., :-1, :], apart[1, ..., :-1, :], apart[0, ..., 1:, :], apart[1, ..., 1:, :]])
        for total in _sums([row[0, ..., :-1], row[1, ..., :-1], row[0, ..., 1:], row[1, ..., 1:]])
    ]


def _sums(d: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Of four neighboring pixels along one axis."""
    yield d[0] - d[2]
    yield d[1] + d[2]
    yield d[2] - d[1]
    yield d[1] - d[3]


def _multiplied(sums, weight, bias, out) -> None:
    """Writes what the weights of some of the channels make of the pixels' sums to out [c_out, n, rows, w]."""
    weights = onednn.linear(SUMS, weight.reshape(-1, 9), None).unflatten(1, weight.shape[:2])  # [16, c_out, c]
    made = [onednn.linear(each, pixels.T, None) for each, pixels in zip(weights, sums, strict=True)]  # [c_out, squares]
    if bias is not None:
        made[5] += bias[:, None]  # which is a term of all four results, once
    halves = [_results(made[row:row + 4]) for row in range(0, 16, 4)]
    for right, column in enumerate(zip(*halves, strict=True)):
        for below, result in enumerate(_results(column)):
            own = out[:, :, below::2, right::2]
            own.copy_(result.view(own.shape))


def _results(m: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The two results of four products along one axis, in place."""
    return m[0].add_(m[1]).add_(m[2]), m[1].sub_(m[2]).sub_(m[3])


PROBE = Probe(
    convolved, functools.partial(F.conv2d, padding=1), [PROBED, (PROBED[1], PROBED[1], 3, 3), PROBED[1:2]], SHARE,
)
