"""Linear layers by oneDNN against PyTorch's own in fp64, and which layers it takes."""

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
