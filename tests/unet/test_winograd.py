"""3x3 convolutions in fewer products, against PyTorch's in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.families import relative_error
from support.formulas import randn
from unet import winograd
from unet.quick_conv import QuickConv2d
from unet.stored_layers import StoredLayers

PLACES = [  # images of n x h x w; squares of results at a time; bytes of summed weights at a time
    ((3, 6, 8), 1024, 2**20), ((2, 70, 80), 500, 2**20), ((5, 8, 2), 8, 2**20), ((1, 2, 400), 50, 2**20), ((1, 400, 2), 50, 2**20),
    ((2, 16, 16), 1024, 16 * 7 * 4), ((2, 16, 16), 100, 16 * 7 * 4 * 2),
]


@pytest.mark.parametrize("size, squares, weights", PLACES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_any_size_in_any_chunks_is_convolved(monkeypatch, size, squares, weights, with_bias):
    monkeypatch.setattr(winograd, "AT_A_TIME", squares)
    monkeypatch.setattr(winograd, "WEIGHT_BYTES", weights)
    count, height, width = size
    x, weight, bias = randn(count, 7, height, width).float(), randn(5, 7, 3, 3).float(), randn(5).float() if with_bias else None
    expected = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    assert relative_error(winograd.convolved(x, weight, bias), expected) <= 1e-6


@pytest.mark.parametrize("channels, size", [(320, 16), pytest.param(1280, 8, marks=pytest.mark.slow)])
def test_of_a_whole_layer_the_error_is_near_that_of_the_convolution(channels, size):
    """Also where one pixel, a channel, all pixels or a weight is a thousand times as large."""
    x, weight = randn(2, channels, size, size).float(), randn(channels, channels, 3, 3).float()
    for large in (x[:0], x[0, :, 5, 5], x[:, 7], x, weight[3, 5]):
        large *= 1000
        exact = F.conv2d(x.double(), weight.double(), padding=1)
        usual, quick = F.conv2d(x, weight, padding=1), winograd.convolved(x, weight, None)
        assert relative_error(quick, exact) <= 1e-6
        assert (quick - exact)[1].norm() <= 4 * (usual - exact)[1].norm(), "an image's error reaches another"


@pytest.fixture
def used(monkeypatch):
    """How often the quick way is taken by layers of few channels, on any machine."""
    calls, real = [], winograd.convolved
    monkeypatch.setattr(winograd, "pays", lambda: True)
    monkeypatch.setattr(winograd, "CHANNELS", 6)
    monkeypatch.setattr(winograd, "convolved", lambda x, *more: calls.append(tuple(x.shape)) or real(x, *more))
    return calls


def layer(into=6, out=6, kind=QuickConv2d, **options):
    return kind(into, out, options.pop("size", 3), **{"padding": 1, **options}).requires_grad_(False)


def is_convolved(conv, x):
    pad = "circular" if conv.padding_mode == "circular" else "constant"
    expected = F.conv2d(F.pad(x.double(), 4 * [conv.padding[0]], pad), conv.weight.double(), conv.bias.double(), conv.stride,
                        0, conv.dilation, conv.groups)
    return relative_error(conv(x), expected) <= 1e-6


def test_a_layer_takes_it_and_changed_weights_act_at_once(used):
    conv, x = layer(), randn(2, 6, 16, 16).float()
    assert is_convolved(conv, x)
    conv.weight.mul_(1.5)
    assert is_convolved(conv, x) and used == 2 * [(2, 6, 16, 16)]


@pytest.mark.parametrize("options, shape", [
    ({}, (2, 6, 16, 15)), ({}, (2, 6, 15, 16)), ({}, (1, 6, 16, 16)), ({"into": 4}, (2, 4, 16, 16)), ({"out": 4}, (2, 6, 16, 16)),
    ({"stride": 2}, (2, 6, 32, 32)), ({"padding": 0}, (2, 6, 32, 32)), ({"dilation": 2}, (2, 6, 32, 32)),
    ({"groups": 2}, (2, 6, 32, 32)), ({"size": 1, "padding": 0}, (2, 6, 32, 32)), ({"padding_mode": "circular"}, (2, 6, 16, 16)),
])
def test_other_layers_and_sizes_go_the_usual_way(used, options, shape):
    assert is_convolved(layer(**options), randn(*shape).float()) and used == []


@pytest.mark.parametrize("kind", [QuickConv2d, StoredLayers.Conv2d])
def test_packs_that_make_images_tile_are_heeded_and_what_they_put_back_is_quick_again(used, monkeypatch, kind):
    """They set a padding, or a function of one layer or of PyTorch's class."""
    def wraps(self, x, weight, bias):
        return F.conv2d(F.pad(x, 4 * [1], "circular"), weight, bias)

    conv, x = layer(kind=kind), randn(2, 6, 16, 16).float()
    expected = wraps(conv, x, conv.weight, conv.bias)
    conv.padding_mode = "circular"
    assert torch.equal(conv(x), expected)
    conv.padding_mode, conv._conv_forward = "zeros", wraps.__get__(conv)
    assert torch.equal(conv(x), expected) and used == []
    conv._conv_forward = nn.Conv2d._conv_forward.__get__(conv, nn.Conv2d)  # as such packs end
    assert is_convolved(conv, x) and len(used) == 1
    del conv._conv_forward
    with monkeypatch.context() as patched:
        patched.setattr(nn.Conv2d, "_conv_forward", wraps)
        assert torch.equal(conv(x), expected)
    assert is_convolved(conv, x) and len(used) == 2


def test_weights_of_another_shape_are_convolved_as_they_are(used):
    """A host or a pack may put them into a layer that was built for others."""
    conv, x = layer(), randn(2, 9, 16, 16).float()
    conv.weight, conv.bias = (nn.Parameter(randn(*shape).float(), requires_grad=False) for shape in ((7, 9, 3, 3), (7,)))
    assert is_convolved(conv, x) and used == [(2, 9, 16, 16)]
    for shape in ((7, 9, 1, 1), (7, 9, 2, 2)):
        conv.weight = nn.Parameter(randn(*shape).float(), requires_grad=False)
        assert is_convolved(conv, x)
    with pytest.raises(RuntimeError, match="expected input.* to have 9 channels, but got 6 channels instead"):
        conv(x[:, :6])


def test_an_image_without_a_batch_is_convolved(used):
    conv, x = layer(), randn(6, 32, 32).float()
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1)) and used == []


def test_a_switch_of_pytorch_turns_it_off(used, monkeypatch):
    conv, x = layer(), randn(2, 6, 16, 16).float()
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "enabled", False)
        assert is_convolved(conv, x) and used == []
    assert is_convolved(conv, x) and len(used) == 1


def test_a_compiler_for_any_size_is_not_asked_for_even_and_odd_ones(used):
    graphs = []
    compiled = torch.compile(layer(), backend=lambda graph, _: graphs.append(1) or graph.forward, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for height, width in ((32, 48), (33, 32), (32, 33), (10, 8)):
            compiled(randn(2, 6, height, width).float())
    assert len(graphs) == 1


def test_where_something_looks_at_how_it_goes_the_usual_way(used, monkeypatch):
    conv, x = layer(), randn(2, 6, 16, 16).float()
    monkeypatch.setattr(QuickConv2d, "is_plain", lambda self: False)
    assert is_convolved(conv, x)
    monkeypatch.undo()
    monkeypatch.setattr(winograd, "pays", lambda: pytest.fail("asked"))
    monkeypatch.setattr(winograd, "CHANNELS", 6)
    conv(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    torch.compile(conv, backend="eager", fullgraph=True)(x.detach())
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x.detach()).dtype == torch.bfloat16
    assert conv.half()(x.detach().half()).dtype == torch.float16


def test_where_it_does_not_pay_it_is_not_taken(used, monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda: False)
    assert is_convolved(layer(), randn(2, 6, 16, 16).float()) and used == []
