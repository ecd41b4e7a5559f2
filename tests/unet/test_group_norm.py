"""Group norm in chunks against torch's own of the whole, in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.families import relative_error
from unet.group_norm import moments, pool, pooled, read_affine

EPS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def layer(dtype, kind=nn.GroupNorm):
    norm = kind(8, 24, eps=1e-5).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    norm.weight.copy_(1 + 0.5 * torch.randn(24, generator=generator))
    norm.bias.copy_(0.5 * torch.randn(24, generator=generator))
    return norm.to(dtype)


def values(dtype, offset=0.0, rows=2):
    """[rows, 24, 3, 11], each channel with a mean and a spread of its own."""
    generator = torch.Generator().manual_seed(1)
    spread, mean = torch.rand(1, 24, 1, 1, generator=generator) + 0.1, torch.randn(1, 24, 1, 1, generator=generator)
    return (offset + mean + spread * torch.randn(rows, 24, 3, 11, generator=generator)).to(dtype)


def in_chunks(norm, x, sizes=(4, 1, 6), affine=read_affine):
    chunks = x.split(sizes, dim=-1)
    apply = pooled(norm, (moments(chunk, norm.num_groups) for chunk in chunks), x.dtype, affine)
    return torch.cat([apply(chunk) for chunk in chunks], dim=-1)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", EPS)
def test_chunks_of_unequal_size_are_normalized_as_the_whole(dtype, rows):
    norm, x = layer(dtype), values(dtype, rows=rows)
    made = in_chunks(norm, x)
    exact = F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), 1e-5)
    assert made.dtype == dtype
    assert relative_error(made, exact) <= max(EPS[dtype], 1.02 * relative_error(norm(x), exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_variance_survives_a_mean_that_is_far_larger(dtype):
    x = values(dtype, offset=300.0)
    _, variance = pool([moments(chunk, 8) for chunk in x.split(4, dim=-1)])
    exact = x.double().reshape(2, 8, -1).var(-1, correction=0)
    assert variance.dtype == torch.float32
    assert relative_error(variance, exact) <= 1e-5


def test_large_halves_do_not_overflow():
    x = 200 * values(torch.float16)
    norm = layer(torch.float16)
    exact = F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), 1e-5)
    assert relative_error(in_chunks(norm, x), exact) <= 1e-3


class Patched(nn.GroupNorm):
    """A layer as hosts have them: its values have another dtype, and those that it uses are not those that it stores."""

    def used(self, dtype, device):
        return -2 * self.weight.to(device, dtype), self.bias.to(device, dtype) + 3

    def forward(self, x):
        return F.group_norm(x, self.num_groups, *self.used(x.dtype, x.device), self.eps)


@pytest.mark.parametrize(("stored", "dtype"), [
    (torch.float16, torch.float32), (torch.float32, torch.float16), (torch.float32, torch.bfloat16),
])
def test_a_layer_that_casts_and_patches_its_weights_is_asked_for_them(stored, dtype):
    norm, x = layer(stored, Patched), values(dtype)
    exact = F.group_norm(x.double(), 8, -2 * norm.weight.to(dtype).double(), (norm.bias.to(dtype) + 3).double(), 1e-5)
    made = in_chunks(norm, x, affine=Patched.used)
    assert relative_error(made, exact) <= max(EPS[dtype], 1.02 * relative_error(norm(x), exact))
