"""Group norm in chunks: statistics pooled over chunks that are never in memory together, then applied to any of them."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

Moments = tuple[int, torch.Tensor, torch.Tensor]  # (values in a group, their mean [b, groups], their variance [b, groups])

PROBE = 4096.0  # so large that eps is lost beside its square, and exact in fp16


def moments(x: torch.Tensor, groups: int) -> Moments:
    """The moments of a chunk x [b, c, …], in fp32 at least."""
    x = x.reshape(x.shape[0], groups, -1)
    mean = x.mean(-1, dtype=_wide(x.dtype))  # then the deviations: torch.var_mean takes ten times as long on a CPU
    return x.shape[-1], mean, (x - mean[..., None]).square_().mean(-1)


def pool(chunks: Iterable[Moments]) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, variance), each [b, groups], of several chunks taken together (Chan et al. 1979)."""
    counts, means, variances = zip(*chunks, strict=True)
    means, variances = torch.stack(means), torch.stack(variances)
    share = torch.tensor(counts).to(means)[:, None, None] / sum(counts)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


def read_affine(norm: nn.GroupNorm, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's weight and bias, both [c], as they lie in it."""
    return norm.weight.to(device, dtype), norm.bias.to(device, dtype)


def pooled(
    norm: nn.GroupNorm, chunks: Iterable[Moments], dtype: torch.dtype, affine: Callable | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer as a function of any chunk [b, c, …] in `dtype` of what `chunks` are the moments of.

    `affine` gives the layer's weight and bias, as `read_affine` does: a host's layers may cast and patch them.
    """
    mean, variance = (value.repeat_interleave(norm.num_channels // norm.num_groups, 1) for value in pool(chunks))
    weight, bias = (affine or _affine)(norm, dtype, mean.device)
    scale = weight * torch.rsqrt(variance + norm.eps)
    shift = bias - mean * scale

    def apply(x):
        shape = [*scale.shape, *[1] * (x.ndim - 2)]
        return (x * scale.view(shape)).add_(shift.view(shape)).to(x.dtype)

    return apply


def _affine(norm, dtype, device):
    """The layer's weight and bias [c], found by a call of it: a host's layer alone knows where they lie and what patches them.

    It makes the bias out of zeros, and bias + weight and bias - weight out of two values that differ in their sign alone.
    """
    probe = torch.zeros(2, norm.num_channels, 2, dtype=dtype, device=device)
    probe[1, :, 0], probe[1, :, 1] = PROBE, -PROBE
    zeros, signs = norm(probe).to(_wide(dtype))
    bias, more, less = zeros[:, 0], signs[:, 0], signs[:, 1]
    weight = torch.where(more.abs() < less.abs(), more - bias, bias - less)  # the smaller lost less to rounding
    return weight.to(dtype), bias


def _wide(dtype):
    return torch.promote_types(dtype, torch.float32)
