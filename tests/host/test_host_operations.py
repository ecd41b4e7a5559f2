"""Plain layers in a quicker way under the host: equal where its own layer is plain, and its own layer everywhere else."""

import comfy.ops
import pytest
import torch

from support.families import relative_error
from support.oracle import SMALL, Pair, prompts, sample

ROWS, INTO, OUT = 300, 24, 40
X = torch.randn(2, ROWS, INTO, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ran(pack, monkeypatch):
    """How often oneDNN's plain linear ran; it pays on every machine."""
    onednn = pack("unet.onednn")
    calls = []
    form = onednn.linear
    monkeypatch.setattr(onednn, "linear", lambda *args: calls.append(1) or form(*args))
    monkeypatch.setattr(onednn, "pays", lambda form: True)
    return calls


@pytest.fixture
def pair(pack):
    """(ours, the host's) linear layer on the same weights, of the operations picked for these dtypes."""
    def make(stored=torch.float32, compute=None):
        operations = comfy.ops.pick_operations(stored, compute)
        layers = [kind.Linear(INTO, OUT, dtype=stored) for kind in
                  (pack("nodes.bridge.model.host_operations").with_quick_layers(operations), operations)]
        generator = torch.Generator().manual_seed(0)
        state = {"weight": torch.randn(OUT, INTO, generator=generator) / 5, "bias": torch.randn(OUT, generator=generator)}
        for layer in layers:
            layer.load_state_dict({name: value.to(stored) for name, value in state.items()})
            layer.requires_grad_(False)
        return layers

    return make


def same(ours, theirs, x=X, error=1e-6):
    made, expected = ours(x), theirs(x)
    assert made.dtype == expected.dtype
    assert relative_error(made, expected) <= error


def test_a_plain_layer_runs_by_onednn(pair, ran):
    ours, theirs = pair()
    same(ours, theirs)
    assert len(ran) == 1
    assert isinstance(ours, comfy.ops.disable_weight_init.Linear) and isinstance(ours, comfy.ops.CastWeightBiasOp)
    ours.weight.mul_(2), theirs.weight.mul_(2)  # as the host patches weights in place
    same(ours, theirs)
    assert len(ran) == 2


@pytest.mark.parametrize("name, change", {
    "weight_function": lambda layer: setattr(layer, "weight_function", [lambda weight: 3 * weight]),
    "bias_function": lambda layer: setattr(layer, "bias_function", [lambda bias: bias - 1]),
    "cast_weights": lambda layer: setattr(layer, "comfy_cast_weights", True),
    "own_forward": lambda layer: setattr(layer, "forward", lambda x: layer.weight.sum() * x),
    "fp8_weight": lambda layer: (
        setattr(layer, "weight", torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)),
        setattr(layer, "comfy_cast_weights", True),
    ),
}.items())
def test_a_changed_layer_is_the_hosts(pair, ran, name, change):
    ours, theirs = pair()
    for layer in (ours, theirs):
        change(layer)
    same(ours, theirs, error=0)
    assert not ran


@pytest.mark.parametrize("stored, compute, x", [
    (torch.float8_e4m3fn, torch.float32, torch.float32), (torch.bfloat16, torch.float32, torch.float32),
    (torch.float32, torch.bfloat16, torch.bfloat16), (torch.bfloat16, None, torch.bfloat16),
])
def test_other_dtypes_are_the_hosts(pair, ran, stored, compute, x):
    same(*pair(stored, compute), X.to(x), error=0)
    assert not ran


def test_hooks_on_a_layer_act(pair, ran):
    ours, theirs = pair()
    for layer in (ours, theirs):
        layer.register_forward_pre_hook(lambda module, args: 2 * args[0])
        layer.register_forward_hook(lambda module, args, out: out - 1)
    same(ours, theirs)
    assert len(ran) == 1


def test_gradients_flow_as_through_the_hosts_layer(pair, ran):
    with torch.inference_mode(False), torch.enable_grad():
        found = []
        for layer in pair():
            x = X.clone().requires_grad_()
            layer(x).square().sum().backward()
            found.append(x.grad)
    assert torch.equal(*found) and not ran


def test_an_interrupted_run_ends_in_a_layer(pair, ran):
    management = comfy.ops.comfy.model_management
    management.interrupt_current_processing()
    try:
        with pytest.raises(management.InterruptProcessingException):
            pair()[0](X)
    finally:
        management.interrupt_current_processing(False)


IMAGES = torch.randn(2, 6, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def convolved(pack, monkeypatch):
    """How often a convolution ran by fewer products; it pays on every machine, and for few channels."""
    winograd = pack("unet.winograd")
    calls, form = [], winograd.convolved
    monkeypatch.setattr(winograd, "convolved", lambda *args: calls.append(1) or form(*args))
    monkeypatch.setattr(winograd, "pays", lambda: True)
    monkeypatch.setattr(winograd, "CHANNELS", 6)
    return calls


@pytest.fixture
def convolutions(pack):
    """(ours, the host's) convolution on the same weights."""
    kinds = pack("nodes.bridge.model.host_operations").Operations, comfy.ops.disable_weight_init
    layers = [kind.Conv2d(6, 8, 3, padding=1).requires_grad_(False) for kind in kinds]
    for parameter in layers[0].parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    layers[1].load_state_dict(layers[0].state_dict())
    return layers


def test_a_plain_convolution_takes_fewer_products_and_an_interrupted_run_ends_in_it(convolutions, convolved):
    same(*convolutions, IMAGES)
    assert convolved == [1]
    management = comfy.ops.comfy.model_management
    management.interrupt_current_processing()
    try:
        with pytest.raises(management.InterruptProcessingException):
            convolutions[0](IMAGES)
    finally:
        management.interrupt_current_processing(False)


@pytest.mark.parametrize("name, value", [
    ("weight_function", [lambda weight: 3 * weight]), ("bias_function", [lambda bias: bias - 1]), ("comfy_cast_weights", True),
])
def test_a_changed_convolution_is_the_hosts(convolutions, convolved, name, value):
    for layer in convolutions:
        setattr(layer, name, value)
    same(*convolutions, IMAGES, error=0)
    assert not convolved


@pytest.mark.slow
@pytest.mark.parametrize("patched", [False, True], ids=["plain", "lora"])
def test_a_sampled_video_is_the_hosts(pack, ran, tmp_path, patched):
    """The clip is large enough for oneDNN; the patch of weights is what a LoRA becomes."""
    made = []
    for model in Pair(pack, tmp_path, "svd"):
        model = model.clone()
        if patched:
            key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.2.weight"
            model.add_patches({key: ("diff", (torch.ones(model.model.state_dict()[key].shape),))}, 0.1)
        made.append(sample(model, *prompts(SMALL["svd"]), size=(16, 16), steps=1, cfg=1.0))
    assert relative_error(*made) <= 3e-5  # the host's two attentions differ by 1.1e-5 here
    assert len(ran) > 20


def test_upsampling_doubles_in_the_convolution_until_its_weights_are_cast_or_patched(pack, monkeypatch):
    operations = pack("nodes.bridge.model.host_operations").with_quick_layers(comfy.ops.disable_weight_init)
    layers, call = pack("unet.layers"), pack("unet.hooks").Call(None)
    made, doubled = [], layers.doubled
    monkeypatch.setattr(layers, "doubled", lambda *args: made.append(1) or doubled(*args))
    ours = layers.Upsample(8, operations=operations, factory={"dtype": torch.float32, "device": None}).requires_grad_(False)
    conv = comfy.ops.disable_weight_init.Conv2d(8, 8, 3, padding=1)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter)
    conv.load_state_dict(ours.conv.state_dict())
    x = torch.randn(2, 8, 16, 24, generator=torch.Generator().manual_seed(3))

    def same_as_host():
        expected = conv(torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"))
        return relative_error(ours(x, call), expected) <= 1e-6

    assert same_as_host() and len(made) == 1
    for layer in (ours.conv, conv):
        layer.weight_function = [lambda weight: 3 * weight]
    assert same_as_host() and len(made) == 1
    for layer in (ours.conv, conv):
        layer.weight_function, layer.comfy_cast_weights = [], True
    assert same_as_host() and len(made) == 1
