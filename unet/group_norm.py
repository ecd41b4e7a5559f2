"""Group norm in chunks: statistics pooled over chunks that are never in memory together, then applied to any of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

Moments = tuple[int, torch.Tensor, torch.Tensor]  # (values in a group, their mean [b, groups], their variance [b, groups])


def moments(x: torch.Tensor, groups: int) -> Moments:
    """The moments of a chunk x [b, c, …], in fp32 at least."""
    x = x.reshape(x.shape[0], groups, -1)
    mean = x.mean(-1, dtype=_wide(x.dtype))  # then the deviations: torch.var_mean takes ten times as long on a CPU
    return x.shape[-1], mean, (x - mean[..., None]).square_().mean(-1)


def pool(chunks: Iterable[Moments]) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, variance), each [b, groups], of several chunks taken together (Chan et al. 1979)."""
    counts, mean_of_each, variance_of_each = zip(*chunks, strict=True)
    means, variances = torch.stack(mean_of_each), torch.stack(variance_of_each)
    share = torch.tensor(counts).to(means)[:, None, None] / sum(counts)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


def read_affine(norm: nn.GroupNorm, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's weight and bias, both [c], as they lie in it."""
    return norm.weight.to(device, dtype), norm.bias.to(device, dtype)


def pooled(
    norm: nn.GroupNorm, chunks: Iterable[Moments], dtype: torch.dtype, affine: Callable = read_affine
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer as a function of any chunk [b, c, …] in `dtype` of what `chunks` are the moments of.

    `affine` gives the layer's weight and bias, as `read_affine` does: a host's layers may cast and patch them.
    """
    mean, variance = (value.repeat_interleave(norm.num_channels // norm.num_groups, 1) for value in pool(chunks))
    weight, bias = affine(norm, dtype, mean.device)
    scale = weight * torch.rsqrt(variance + norm.eps)
    shift = bias - mean * scale

    def apply(x):
        shape = [*scale.shape, *[1] * (x.ndim - 2)]
        return (x * scale.view(shape)).add_(shift.view(shape)).to(x.dtype)

    return apply


def residual_in_strips(
    block: Any, seen: Iterable[Moments], strips: Callable[[], Iterator[tuple[slice, torch.Tensor]]],
    dtype: torch.dtype, affine: Callable = read_affine, shift: torch.Tensor | None = None, keep: int = 0,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """x + out_layers(in_layers(x) + shift) of a residual block, strip by strip: (place, x, result) of each.

    The norms that `in_layers` and `out_layers` begin with span all strips; their other layers must not mix strips.

    Args:
        block: has `in_layers` and `out_layers`.
        seen: moments of x, over all strips together.
        strips: starts a round over the strips, (place, x [b, c, …]) of each. There are two: the first finds the statistics
            of the second norm. In the second, a strip that was yielded may be overwritten.
        dtype: of x.
        affine: as in `pooled`.
        shift: added between the two halves.
        keep: so many strips keep what the first round made for the second, which computes it again for the others.
    """
    norm, *convolve = block.in_layers
    inner_norm, *inner_convolve = block.out_layers
    normed = pooled(norm, seen, dtype, affine)

    def inner(x):
        h = _run(convolve, normed(x))
        return h if shift is None else h + shift

    kept: list[torch.Tensor] = []
    inner_seen: list[Moments] = []
    for _, x in strips():
        h = inner(x)
        inner_seen.append(moments(h, inner_norm.num_groups))
        if len(kept) < keep:
            kept.append(h)
    inner_normed = pooled(inner_norm, inner_seen, dtype, affine)
    for place, x in strips():
        h = kept.pop(0) if kept else inner(x)
        yield place, x, x + _run(inner_convolve, inner_normed(h))


def _run(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def _wide(dtype):
    return torch.promote_types(dtype, torch.float32)
