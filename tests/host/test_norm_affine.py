"""The weight and bias of the host's group norms in chunks, against the layers' own calls."""

import comfy.ops
import pytest
import torch

from support.families import relative_error
from unet.group_norm import moments, pooled

KINDS = {"plain": comfy.ops.disable_weight_init, "casting": comfy.ops.manual_cast}


def layer(kind, dtype, patched):
    norm = KINDS[kind].GroupNorm(8, 24, eps=1e-5, dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    norm.weight.copy_(1 + 0.5 * torch.randn(24, generator=generator))
    norm.bias.copy_(0.5 * torch.randn(24, generator=generator))
    if patched:  # as the host's model patcher does with patches of weights that it does not keep on the device
        norm.weight_function, norm.bias_function = [lambda weight: -2 * weight], [lambda bias: bias + 3]
    return norm


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("kind, stored, dtype", [
    ("plain", torch.float32, torch.float32), ("plain", torch.float16, torch.float16), ("casting", torch.float16, torch.float32),
    ("casting", torch.float32, torch.float16), ("casting", torch.float32, torch.bfloat16),
])
def test_a_norm_in_chunks_equals_the_layers_own_call(pack, kind, stored, dtype, patched):
    cast_affine = pack("nodes.bridge.model.norm_affine").cast_affine
    norm = layer(kind, stored, patched)
    x = torch.randn(2, 24, 3, 11, generator=torch.Generator().manual_seed(1)).to(dtype)
    chunks = x.split((4, 1, 6), dim=-1)
    apply = pooled(norm, (moments(chunk, 8) for chunk in chunks), dtype, cast_affine)
    made = torch.cat([apply(chunk) for chunk in chunks], dim=-1)
    assert made.dtype == dtype
    assert relative_error(made, norm(x)) <= {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]


def test_weight_and_bias_are_copies(pack):
    """The host uses the memory of a cast again for the next layer."""
    norm = layer("plain", torch.float32, patched=False)
    for value in pack("nodes.bridge.model.norm_affine").cast_affine(norm, torch.float32, torch.device("cpu")):
        value.zero_()
    assert norm.weight.any() and norm.bias.any()
