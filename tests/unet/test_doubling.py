"""Doubling an image and convolving it in one, against doing one after the other."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.families import relative_error
from support.formulas import randn
from unet import doubling, layers
from unet.hooks import Call
from unet.quick_conv import QuickConv2d

OPERATIONS = types.SimpleNamespace(Conv2d=QuickConv2d)


@pytest.fixture
def upsample():
    layer = layers.Upsample(6, operations=OPERATIONS, factory={"dtype": torch.float32, "device": None})
    nn.init.normal_(layer.conv.weight)
    nn.init.normal_(layer.conv.bias)
    return layer.requires_grad_(False)


@pytest.fixture
def used(monkeypatch):
    """How often the quick way is taken."""
    calls, real = [], layers.doubled
    monkeypatch.setattr(layers, "doubled", lambda x, *more: calls.append(x.shape[0]) or real(x, *more))
    return calls


def one_after_the_other(layer, x, size):
    return layer.conv(F.interpolate(x.double(), size=size, mode="nearest").to(x.dtype))


@pytest.mark.parametrize("shape", [(2, 6, 16, 16), (1, 6, 23, 24), (3, 6, 1, 200)])
@pytest.mark.parametrize("budget", [None, 1])
def test_the_result_is_that_of_doubling_and_then_convolving(upsample, used, shape, budget):
    x = randn(*shape).float()
    expected = one_after_the_other(upsample, x, (2 * shape[2], 2 * shape[3]))
    assert relative_error(upsample(x, Call(None, budget=budget)), expected) <= 1e-6
    assert used == ([shape[0]] if budget is None else shape[0] * [1])


def test_another_size_few_pixels_and_half_precision_go_the_usual_way(upsample, used):
    x = randn(2, 6, 16, 16).float()
    upsample(x, Call(None, next_skip=torch.Size([2, 6, 31, 32])))
    upsample(x[:1], Call(None))
    upsample.half()(x.half(), Call(None))
    assert used == []


def test_hooks_another_forward_and_weights_that_are_not_plain_go_the_usual_way(upsample, used, monkeypatch):
    x, seen = randn(2, 6, 16, 16).float(), []
    expected = upsample(x, Call(None))
    assert used == [2]
    handle = upsample.conv.register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    assert relative_error(upsample(x, Call(None)), expected) <= 1e-6
    handle.remove()
    forward = upsample.conv.forward
    upsample.conv.forward = lambda x: seen.append(x.shape) or forward(x)
    assert relative_error(upsample(x, Call(None)), expected) <= 1e-6
    del upsample.conv.forward
    upsample.conv.__class__ = type("Watched", (QuickConv2d,), {"forward": lambda self, x: seen.append(x.shape) or forward(x)})
    assert relative_error(upsample(x, Call(None)), expected) <= 1e-6
    upsample.conv.__class__ = QuickConv2d
    monkeypatch.setattr(QuickConv2d, "is_plain", lambda self: False)
    assert relative_error(upsample(x, Call(None)), expected) <= 1e-6
    assert seen == [(2, 6, 32, 32)] * 3 and used == [2]


def test_other_padding_is_kept(upsample, used, monkeypatch):
    x = randn(2, 6, 16, 16).float()
    upsample.conv.padding_mode = "circular"
    assert relative_error(upsample(x, Call(None)), one_after_the_other(upsample, x, (32, 32))) <= 1e-6
    upsample.conv.padding_mode = "zeros"
    upsample.conv._conv_forward = lambda x, weight, bias: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)
    assert relative_error(upsample(x, Call(None)), one_after_the_other(upsample, x, (32, 32))) <= 1e-6
    assert used == []


def test_changed_weights_act_at_once(upsample):
    x = randn(2, 6, 16, 16).float()
    upsample(x, Call(None))
    upsample.conv.weight.mul_(1.5)
    assert relative_error(upsample(x, Call(None)), one_after_the_other(upsample, x, (32, 32))) <= 1e-6
    assert doubling.doubles(upsample.conv, x, (32, 32))
