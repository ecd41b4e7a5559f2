"""Group norm in parts: statistics pooled over parts that are never in memory together, then applied to any of them."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

Moments = tuple[int, torch.Tensor, torch.Tensor]  # (values in a group, their mean [b, groups], their variance [b, groups])

PROBE = 4096.0  # so large that eps is lost beside its square, and exact in fp16


def moments(x: torch.Tensor, groups: int) -> Moments:
    """Of a part x [b, c, …], in fp32 at least."""
    x = x.reshape(x.shape[0], groups, -1)
    mean = x.mean(-1, dtype=_wide(x.dtype))  # then the deviations: torch.var_mean takes ten times as long on a CPU
    return x.shape[-1], mean, (x - mean[..., None]).square_().mean(-1)


def pool(parts: Iterable[Moments]) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, variance), each [b, groups], of several parts taken together (Chan et al. 1979)."""
    counts, means, variances = zip(*parts)
    means, variances = torch.stack(means), torch.stack(variances)
    share = torch.tensor(counts).to(means)[:, None, None] / sum(counts)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


def pooled(norm: nn.GroupNorm, parts: Iterable[Moments], dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer as a function of any part [b, c, …] in `dtype` of what `parts` are the moments of."""
    mean, variance = (value.repeat_interleave(norm.num_channels // norm.num_groups, 1) for value in pool(parts))
    weight, bias = _affine(norm, dtype, mean.device)
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
