"""Which attention our networks take on a CPU: PyTorch's kernel where the user chose none, else the user's."""

import comfy.ldm.modules.attention as host_attention
import pytest
import torch

from support.families import relative_error

Q = torch.randn(3, 2, 20, 16, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.fixture
def taken(pack, monkeypatch):
    """The name of the host's function that a call of our hooks takes, which must give the host's result."""
    def call(dtype=torch.float32, precision=None, options=None, layout=lambda z: z):
        ran = []
        for name in ("attention_pytorch", "attention_sub_quad", "attention_split"):
            function = getattr(host_attention, name)
            if host_attention.optimized_attention is function:
                monkeypatch.setattr(host_attention, "optimized_attention", noted(ran, name, function))
                monkeypatch.setattr(host_attention, name, host_attention.optimized_attention)
            else:
                monkeypatch.setattr(host_attention, name, noted(ran, name, function))
        q, k, v = (layout(z.to(dtype)) for z in Q)
        hooks = pack("nodes.bridge.model.host_hooks").AttentionHooks(options or {}, precision)
        expected = host_attention.attention_basic(q, k, v, 2, attn_precision=precision)
        assert relative_error(hooks.attention(q, k, v, 2), expected) <= (1e-6 if dtype == torch.float32 else 2e-2)
        return ran[0] if ran else None

    return call


def noted(ran, name, function):
    def call(*args, **kwargs):
        ran.append(name)
        return function(*args, **kwargs)
    return call


def test_without_a_choice_it_is_pytorchs(taken):
    assert taken() == "attention_pytorch"
    assert taken(torch.bfloat16) == "attention_pytorch"


def test_the_quad_flag_is_obeyed(pack, taken, monkeypatch):
    monkeypatch.setattr(pack("nodes.bridge.model.host_attention").args, "use_quad_cross_attention", True)
    assert taken() == "attention_sub_quad"


def test_the_split_flag_is_obeyed(taken, monkeypatch):
    monkeypatch.setattr(host_attention, "optimized_attention", host_attention.attention_split)  # what the flag does
    assert taken() == "attention_split"


def test_a_function_that_a_pack_has_put_there_is_taken(taken, monkeypatch):
    monkeypatch.setattr(host_attention, "optimized_attention", host_attention.attention_basic)
    assert taken() is None


def test_a_higher_precision_is_kept(taken):
    assert taken(torch.bfloat16, torch.float32) == "attention_sub_quad"
    assert taken(torch.float32, torch.float32) == "attention_pytorch"


def test_inputs_of_which_pytorch_would_make_the_whole_matrix_are_the_hosts(taken):
    assert taken(layout=lambda z: z.mT.contiguous().mT) == "attention_sub_quad"


def test_an_override_is_called(pack):
    options = {"optimized_attention_override": lambda function, q, *args, **kwargs: 2 * q}
    hooks = pack("nodes.bridge.model.host_hooks").AttentionHooks(options, None)
    assert torch.equal(hooks.attention(*Q, 2), 2 * Q[0])
