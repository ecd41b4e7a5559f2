"""Linear layers by oneDNN against PyTorch's own in fp64, and what is done where oneDNN is absent, wrong or slow."""

import time

import pytest
import torch
import torch.nn.functional as F

from support.families import relative_error
from unet import onednn

EXACT = {
    onednn.linear: lambda y, other: y,
    onednn.gelu: lambda y, other: F.gelu(y),
    onednn.times: lambda y, other: y * other,
    onednn.plus: lambda y, other: y + other,
}
FORMS = pytest.mark.parametrize("form", EXACT, ids=lambda form: form.__name__)


def tensors(seed=0, rows=(3, 100)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((*rows, 40), (24, 40), (24,), (*rows, 24))]


@pytest.fixture(autouse=True)
def probe_again():
    onednn.pays.cache_clear()
    yield
    onednn.pays.cache_clear()


@pytest.fixture
def trusted(monkeypatch):
    """Every form pays: no test depends on how fast this machine is."""
    monkeypatch.setattr(onednn, "pays", lambda form: True)


@FORMS
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, lambda z: z.mT.contiguous().mT], ids=["dense", "transposed"])
@torch.inference_mode()
def test_each_form_equals_fp64(form, with_bias, layout):
    x, weight, bias, other = tensors()
    x, other, bias = layout(x), layout(other), bias if with_bias else None
    more = [other] if form in (onednn.times, onednn.plus) else []
    kept = other.clone()
    expected = EXACT[form](F.linear(x.double(), weight.double(), bias.double() if with_bias else None), other.double())
    assert relative_error(form(x, weight, bias, *more), expected) <= 1e-6
    assert torch.equal(other, kept)


def taken(x, weight, bias):
    return onednn.takes(onednn.linear, x, weight, bias)


def test_it_takes_plain_fp32_and_nothing_else(trusted):
    class Quantized(torch.Tensor):
        pass

    x, weight, bias, _ = tensors()
    assert taken(x, weight, bias) and taken(x, torch.nn.Parameter(weight, requires_grad=False), None)
    assert not taken(x.half(), weight, bias)
    assert not taken(x, weight.to(torch.float8_e4m3fn), bias)
    assert not taken(x, weight, bias.half())
    assert not taken(x.to("meta"), weight.to("meta"), bias.to("meta"))
    assert not taken(x, weight.as_subclass(Quantized), bias)
    assert not taken(x[:, :80], weight, bias), "a few rows are not faster"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not taken(x, weight, bias)


def test_it_takes_nothing_that_needs_a_gradient(trusted):
    x, weight, bias, _ = tensors()
    for index in range(3):
        args = [z.clone().requires_grad_(index == place) for place, z in enumerate((x, weight, bias))]
        assert not taken(*args)
        with torch.no_grad():
            assert taken(*args)


@torch.no_grad()
def test_a_compiler_sees_pytorchs_layer(trusted):
    x, weight, bias, _ = tensors()
    seen = []

    def layer(x):
        return onednn.linear(x, weight, bias) if taken(x, weight, bias) else F.linear(x, weight, bias)

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compile(layer, backend=backend, fullgraph=True)(x)
    assert len(seen) == 1 and "mkldnn" not in seen[0]


def wrong(form, *args):
    return 1.001 * form(*args)


def slow(form, *args):
    time.sleep(0.05)
    return form(*args)


def absent(form, *args):
    raise RuntimeError("no such operator")


def changed(form, *args):
    raise TypeError("got other arguments")


@pytest.mark.parametrize("fault", [wrong, slow, absent, changed], ids=lambda fault: fault.__name__)
def test_a_form_that_fails_its_probe_is_not_taken(fault, monkeypatch):
    def form(x, weight, bias):
        return fault(onednn.linear, x, weight, bias)

    monkeypatch.setitem(onednn.PLAIN, form, F.linear)
    assert not onednn.pays(form)


@pytest.fixture
def next_to_plain(monkeypatch):
    """Has a form probed next to one of PyTorch's that takes 1 ms, whatever this machine is; what that one makes."""
    made = torch.ones(onednn.PROBE[0], onednn.PROBE[2])

    def plain(x, weight, bias):
        time.sleep(0.001)
        return made

    def probed(form):
        monkeypatch.setitem(onednn.PLAIN, form, plain)
        return made

    monkeypatch.setattr(onednn.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    return probed


def test_a_form_as_fast_as_pytorchs_passes_its_probe_once(next_to_plain):
    def fast(x, weight, bias):
        calls.append(len(x))
        return made

    calls, made = [], next_to_plain(fast)
    assert onednn.pays(fast)
    once = len(calls)
    assert onednn.pays(fast) and len(calls) == once


def test_a_form_that_is_slow_for_a_while_passes_its_probe(next_to_plain):
    """As on a machine whose processors are busy."""
    def form(x, weight, bias):
        calls.append(len(x))
        time.sleep(0.02 if len(calls) < 10 else 0)
        return made

    calls, made = [], next_to_plain(form)
    assert onednn.pays(form)


def test_other_processors_are_not_even_probed(monkeypatch):
    monkeypatch.setattr(onednn.platform, "machine", lambda: "arm64")
    assert not onednn.pays(onednn.linear)
