"""The host's norms and convolutions computed without a call of the layer, against that call."""

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
    norm_affine = pack("nodes.bridge.model.layer_weights").norm_affine
    norm = layer(kind, stored, patched)
    x = torch.randn(2, 24, 3, 11, generator=torch.Generator().manual_seed(1)).to(dtype)
    chunks = x.split((4, 1, 6), dim=-1)
    apply = pooled(norm, (moments(chunk, 8) for chunk in chunks), dtype, norm_affine)
    made = torch.cat([apply(chunk) for chunk in chunks], dim=-1)
    assert made.dtype == dtype
    assert relative_error(made, norm(x)) <= {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]


def test_a_cast_weight_and_bias_are_copies(pack):
    """The host uses the memory of a cast again for the next layer."""
    norm = layer("plain", torch.float32, patched=False)
    norm.comfy_cast_weights = True  # as on a card whose memory the host manages layer by layer
    for value in pack("nodes.bridge.model.layer_weights").norm_affine(norm, torch.float32, torch.device("cpu")):
        value.zero_()
    assert norm.weight.any() and norm.bias.any()


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("kind, stored, dtype", [
    ("plain", torch.float32, torch.float32), ("casting", torch.float16, torch.float32), ("casting", torch.float32, torch.bfloat16),
])
@pytest.mark.parametrize("name, shape", [("Conv2d", (2, 6, 5, 4)), ("Conv3d", (1, 6, 3, 5, 4))])
def test_a_convolution_and_its_bias_equal_the_layers_own_call(pack, name, shape, kind, stored, dtype, patched):
    convolution = getattr(KINDS[kind], name)(6, 10, 3, padding=1, dtype=stored).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in convolution.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if patched:
        convolution.weight_function, convolution.bias_function = [lambda weight: -2 * weight], [lambda bias: bias + 3]
    x = torch.randn(shape, generator=generator).to(dtype)
    made, bias = pack("nodes.bridge.model.layer_weights").convolution(convolution, x)
    assert made.dtype == bias.dtype == dtype
    error = {torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]
    assert relative_error(made + bias.view(-1, *[1] * (len(shape) - 2)), convolution(x)) <= error


def test_a_convolution_of_another_kind_is_called(pack):
    class Doubling(comfy.ops.manual_cast.Conv2d):
        def forward_comfy_cast_weights(self, x):
            return 2 * super().forward_comfy_cast_weights(x)

    layer = Doubling(6, 10, 3).requires_grad_(False)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(1, 6, 5, 5)
    made, bias = pack("nodes.bridge.model.layer_weights").convolution(layer, x)
    assert bias is None
    assert torch.equal(made, layer(x))
