"""Fused linear layers and feed-forwards against plain ones, and that whatever looks at a call gets its call."""

import types

import pytest
import torch
from torch import nn

from support.families import relative_error
from unet import fused_linear, onednn, transformer

ROWS, DIM = 300, 24


@pytest.fixture(autouse=True)
def forms(monkeypatch):
    """The names of the forms that ran, in order; every form pays."""
    ran = []
    for name in ("linear", "gelu", "times", "plus"):
        form = getattr(onednn, name)

        def noted(*args, form=form, name=name):
            ran.append(name)
            return form(*args)

        monkeypatch.setattr(onednn, name, noted)
    monkeypatch.setattr(onednn, "pays", lambda form: True)
    with torch.inference_mode():
        yield ran


FUSED = types.SimpleNamespace(Linear=fused_linear.FusedLinear, LayerNorm=nn.LayerNorm)


def fed(operations, change=lambda feed_forward: None, budget=None):
    """x plus a feed-forward of its norm, after `change` of the feed-forward."""
    torch.manual_seed(0)
    make = {"operations": operations, "factory": {}}
    feed_forward, norm = transformer.FeedForward(DIM, **make), nn.LayerNorm(DIM)
    x = torch.randn(1, ROWS, DIM)
    change(feed_forward)
    return transformer._fed(norm, feed_forward, x, budget)


def test_a_feed_forward_is_three_fused_calls(forms):
    assert relative_error(fed(FUSED), fed(nn)) <= 1e-6
    assert forms == ["gelu", "times", "plus"]


def test_plain_layers_are_left_to_pytorch(forms):
    fed(nn)
    assert forms == []


def double(module, args, out):
    return 2 * out


def another_class(module):
    """As packs do it to modules that are built already."""
    class Doubled(type(module)):
        def forward(self, x):
            return 2 * super().forward(x)

    module.__class__ = Doubled


CHANGES = {
    "hook_on_last": lambda ff: ff.net[2].register_forward_hook(double),
    "hook_on_proj": lambda ff: ff.net[0].proj.register_forward_hook(double),
    "pre_hook_on_proj": lambda ff: ff.net[0].proj.register_forward_pre_hook(lambda module, args: 2 * args[0]),
    "hook_on_geglu": lambda ff: ff.net[0].register_forward_hook(double),
    "hook_on_net": lambda ff: ff.net.register_forward_hook(double),
    "hook_on_feed_forward": lambda ff: ff.register_forward_hook(double),
    "own_forward_of_last": lambda ff: setattr(ff.net[2], "forward", lambda x: 2 * nn.functional.linear(x, ff.net[2].weight)),
    "own_forward_of_feed_forward": lambda ff: setattr(ff, "forward", lambda x: 3 * x),
    "another_class_of_last": lambda ff: another_class(ff.net[2]),
    "another_class_of_proj": lambda ff: another_class(ff.net[0].proj),
    "another_class_of_feed_forward": lambda ff: another_class(ff),
    "replaced_last": lambda ff: ff.net.__setitem__(2, nn.Linear(4 * DIM, DIM)),
    "replaced_proj": lambda ff: setattr(ff.net[0], "proj", nn.Sequential(nn.Linear(DIM, 8 * DIM, bias=False))),
    "replaced_net": lambda ff: setattr(ff, "net", nn.Tanh()),
    "one_more_layer": lambda ff: ff.net.append(nn.Tanh()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_acts(name):
    changed = fed(FUSED, CHANGES[name])
    assert relative_error(changed, fed(nn, CHANGES[name])) <= 1e-6
    assert relative_error(changed, fed(nn)) > 1e-3


def test_global_hooks_see_every_layer(forms):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    try:
        fed(FUSED)
    finally:
        handle.remove()
    assert seen.count("FusedLinear") == 2
    assert forms == ["linear", "linear"]
