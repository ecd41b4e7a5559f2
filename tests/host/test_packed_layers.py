"""Layers that hold GGUF weights, under the host's own patcher; the oracle is the `gguf` package's dequantization."""

import copy

import comfy.cli_args
import comfy.memory_management
import comfy.model_patcher
import comfy.ops
import gguf
import pytest
import torch
from comfy.quant_ops import QuantizedTensor

from support.families import relative_error

CPU = torch.device("cpu")
SHAPES = {"Linear": (96, 64), "Conv2d": (64, 32, 3, 3), "Conv3d": (64, 32, 3, 1, 1)}
KINDS = ["Q8_0", "Q4_0", "Q4_1"]


@pytest.fixture
def packed(pack):
    """(MODEL of one layer, its values) of a kind of layer and a quantized type."""
    def make(name, kind, operations=comfy.ops.disable_weight_init):
        types, layers = pack("unet.weights.ggml_types"), pack("nodes.bridge.model.packed_weights")
        shape, number = SHAPES[name], gguf.GGMLQuantizationType[kind]
        data = gguf.quantize(torch.randn(shape, generator=torch.Generator().manual_seed(1)).numpy().reshape(-1, 32), number)
        values = torch.from_numpy(gguf.dequantize(data, number)).reshape(shape)
        weight = types.PackedTensor(torch.from_numpy(data.reshape(-1)), types.TYPES[kind], shape)
        layer = getattr(layers.with_packed_layers(operations), name)
        model = torch.nn.Module()
        model.layer = layer(shape[1], shape[0], *[shape[2:]][: len(shape) > 2], device="meta")
        layers.load_weights(model, {"layer.weight": weight, "layer.bias": torch.zeros(shape[0])}, torch.float32)
        model.requires_grad_(False)
        model.model_lowvram, model.lowvram_patch_counter, model.model_loaded_weight_memory = False, 0, 0
        model.model_offload_buffer_memory, model.current_weight_patches_uuid = 0, None
        return comfy.model_patcher.ModelPatcher(model, CPU, CPU), values

    return make


def used(layer, dtype=torch.float32, device=CPU):
    """The weight that a call of the layer computes with."""
    weight, _, _ = comfy.ops.cast_bias_weight(layer, dtype=dtype, bias_dtype=dtype, device=device, offloadable=True)
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def with_delta(model, values):
    delta = 0.05 * torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
    made = model.clone()
    made.add_patches({"layer.weight": ("diff", (delta,))}, 0.7)
    return made, 0.7 * delta


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_call_computes_as_with_the_dequantized_weight(packed, name, kind):
    model, values = packed(name, kind)
    layer, shape = model.model.layer, SHAPES[name]
    x = torch.randn(2, *([shape[1]] + [4] * (len(shape) - 2)))
    plain = getattr(comfy.ops.disable_weight_init, name)(shape[1], shape[0], *[shape[2:]][: len(shape) > 2])
    plain.load_state_dict({"weight": values, "bias": torch.zeros(shape[0])})
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(used(layer, torch.float16), values.half()), "rounded once"
    assert layer.weight.nbytes == values.numel() // 32 * {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}[kind]


@pytest.mark.parametrize("memory", [0, 1], ids=["fully loaded", "low VRAM"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_patch_acts_exactly_and_leaves_the_packed_weight_behind(packed, name, memory):
    model, values = packed(name, "Q4_0")
    before = model.model.layer.weight._qdata.clone()
    patched, delta = with_delta(model, values)
    patched.patch_model(CPU, lowvram_model_memory=memory)
    for _call in range(2):
        assert relative_error(used(model.model.layer) - values, delta) <= 1e-5
    patched.unpatch_model(CPU)
    weight = model.model.layer.weight
    assert isinstance(weight, QuantizedTensor) and torch.equal(weight._qdata, before)


@pytest.mark.parametrize("name", SHAPES)
def test_a_patch_acts_on_each_call_of_the_dynamic_path_by_the_hosts_functions_on_a_cpu(packed, monkeypatch, name):
    """No card, and plain memory for what aimdo would reserve: the host would quantize the patched weight again and keep that."""
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    model, values = packed(name, "Q4_0")
    (patched, delta), layer = with_delta(model, values), model.model.layer
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_fault", lambda memory: 1)
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_signature_compare", lambda found, kept: found == kept)
    monkeypatch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda memory, device: memory)
    monkeypatch.setattr(comfy.cli_args.args, "disable_pinned_memory", True)
    layer.comfy_cast_weights, layer.seed_key, layer._v_signature = True, "layer", None
    layer._pin_state, layer.pin_failed, layer.bias_lowvram_function = None, False, None
    layer.weight_lowvram_function = comfy.model_patcher.LowVramPatch("layer.weight", patched.patches)
    layer.weight_function, layer.bias_function = [], []
    size = comfy.memory_management.vram_aligned_size([layer.weight, layer.bias])
    layer._v = torch.zeros(size, dtype=torch.uint8)
    for _call in range(3):  # "cpu" as a text: the host does not stage for the device itself
        assert relative_error(used(layer, device="cpu") - values, delta) <= 1e-5


def test_a_deep_copy_has_a_weight_of_its_own_and_a_move_needs_no_swap(packed):
    import weakref

    model, values = packed("Linear", "Q8_0")
    held = weakref.ref(model.model.layer.weight)  # as a compiler holds it
    made = copy.deepcopy(model.model).to(torch.float16)
    assert made.layer.weight._qdata.data_ptr() != held()._qdata.data_ptr()
    assert torch.equal(used(made.layer), values)
    assert model.model.to(torch.float16).layer.weight.dtype == torch.float16
