"""GGUF weights under the host: they stay quantized, and everything that the host does with weights is right.

The oracle is our network on the values that the `gguf` package makes of the file, or the values themselves.
"""

import copy
import gc
import importlib
import weakref

import comfy.cli_args
import comfy.hooks
import comfy.memory_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from safetensors.torch import load_file

from support.dynamic_path import staged
from support.families import TINY, inputs, relative_error
from support.gguf_networks import write_gguf
from support.oracle import SMALL, TWO_LEVELS, prompts, run_node, sample
from support.small import ONE_LEVEL
from unet import UNetModel, open_checkpoint

CPU = torch.device("cpu")
# Of the family: the others differ from one of these in the channels that go in, or in the depth of their transformers.
LAYOUTS = ("svd", "sd1_tiny", "sd1", "sd2_tiny", "sd2", "unclip_l", "x4_upscaler", "vega", "koala_700m")
CONFIGS = {"sd1_tiny": TINY["sd1_tiny"], "svd": SMALL["svd"], "two levels": TWO_LEVELS, "one level": ONE_LEVEL}
LINEAR = "input_blocks.1.1.time_stack.0.attn1.to_q"
CONV, CONV3D = "input_blocks.1.0.in_layers.2", "input_blocks.1.0.time_stack.in_layers.2"
LAYERS = (LINEAR, CONV, CONV3D)


@pytest.fixture(scope="module")
def opened(pack, tmp_path_factory):
    """(path, values) of a GGUF file of a small network; each is written once."""
    folder, made = tmp_path_factory.mktemp("gguf"), {}

    def make(name="svd", kind="Q4_0", dialect="comfy"):
        key = name, kind, dialect
        if key not in made:
            path = folder / f"{name}-{kind}-{dialect}.gguf"
            made[key] = path, write_gguf(path, CONFIGS.get(name) or TINY[name], kind, dialect)
        return made[key]

    return make


@pytest.fixture(scope="module")
def load(pack, opened):
    """(MODEL, values in the file); tests that leave traces in the MODEL ask for one of their own."""
    made = {}

    def make(*args, own=False, **options):
        path, values = opened(*args)
        if own or options:
            return load_model(str(path), options), values
        if path not in made:
            made[path] = load_model(str(path))
        return made[path], values

    load_model = pack("nodes.bridge.model.unet_loader").load_model
    return make


@pytest.fixture
def without_fused_layers(monkeypatch):
    """A machine where oneDNN does not pay: both networks compute by the same kernels then."""
    import unet.onednn

    monkeypatch.setattr(unet.onednn, "pays", lambda form: False)


def network(path, values):
    model = UNetModel(open_checkpoint(path).config, device="meta")
    model.load_state_dict(values, assign=True)
    return model.requires_grad_(False).eval()


def run(model, config, frames):
    call = inputs(config, frames=frames)
    return model.model.diffusion_model(**call, num_video_frames=frames, transformer_options={})


def layer(model, name):
    return model.model.diffusion_model.get_submodule(name)


def lora(values, names=LAYERS, seed=31, size=0.2):
    """A LoRA of these layers under the host's names, and the delta that it stands for at strength 1."""
    generator, weights, deltas = torch.Generator().manual_seed(seed), {}, {}
    for name in names:
        shape = values[f"{name}.weight"].shape
        up, down = (size * torch.randn(pair, generator=generator) for pair in ((shape[0], 4), (4, shape[1:].numel())))
        weights |= {f"diffusion_model.{name}.lora_up.weight": up.reshape(shape[0], 4, *(1 for _ in shape[2:])),
                    f"diffusion_model.{name}.lora_down.weight": down.reshape(4, *shape[1:])}
        deltas[name] = (up @ down).reshape(shape)
    return weights, deltas


def patched(model, weights, strength=1.0):
    made, _ = comfy.sd.load_lora_for_models(model, None, weights, strength, 0)
    return made


def used(layer, dtype=torch.float32, device=CPU):
    """The weight that a call of the layer computes with."""
    weight, _, _ = comfy.ops.cast_bias_weight(layer, dtype=dtype, bias_dtype=dtype, device=device, offloadable=True)
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("name, dialect", [
    *((name, "comfy") for name in LAYOUTS), ("svd", "sdcpp"), ("sd1", "sdcpp"), ("vega", "sdcpp"),
])
def test_every_layout_computes_as_with_the_dequantized_weights(pack, tmp_path, without_fused_layers, name, dialect):
    path, config = tmp_path / "net.gguf", CONFIGS.get(name, TINY[name]) if dialect == "comfy" else TINY[name]
    values = write_gguf(path, config, "Q8_0", dialect)
    model = pack("nodes.bridge.model.unet_loader").load_model(str(path))
    frames = 3 if config.temporal else 1
    assert torch.equal(run(model, config, frames), network(path, values)(**inputs(config, frames=frames), num_frames=frames))
    path.unlink()


@pytest.mark.parametrize("kind", ["Q8_0", pytest.param("Q4_1", marks=pytest.mark.slow)])
def test_weights_stay_quantized_and_are_counted_by_their_bytes(load, opened, pack, kind):
    model, values = load("svd", kind)
    for name in LAYERS:
        assert isinstance(layer(model, name).weight, QuantizedTensor)
    path, _ = opened("svd", kind)
    packed_bytes = pack("nodes.bridge.model.packed_weights").packed_bytes(open_checkpoint(path), torch.float32)
    assert 0 <= model.model_size() - packed_bytes <= 16384  # the noise levels, which are no weights
    assert packed_bytes < path.stat().st_size
    assert sum(value.numel() for value in values.values()) * {"Q8_0": 1.2, "Q4_1": 0.75}[kind] > packed_bytes


@pytest.mark.slow
@pytest.mark.one_host
def test_a_model_is_freed_with_its_last_reference(load):
    """Not only when all garbage is collected: until then it would take its size in memory once more."""
    model, _ = load(own=True)
    alive = weakref.ref(model.model)
    gc.disable()
    try:
        del model
        assert alive() is None
    finally:
        gc.enable()


def test_a_chosen_dtype_dequantizes_at_load(load):
    model, values = load("svd", dtype=torch.float16)
    for name in LAYERS:
        weight = layer(model, name).weight
        assert type(weight) is torch.nn.Parameter and torch.equal(weight, values[f"{name}.weight"].half())


@pytest.mark.slow
def test_in_half_precision_a_value_is_rounded_once(load):
    """The fp32 value rounded to fp16: with d*q + m in fp16, Q4_1 would be rounded twice."""
    model, values = load("svd", "Q4_1")
    for name in LAYERS:
        assert torch.equal(used(layer(model, name), torch.float16), values[f"{name}.weight"].half())


@pytest.mark.slow
def test_quick_layers_take_no_packed_weight_for_a_plain_one(load, opened):
    """Images large enough for the doubled convolution, in fp32 on a CPU, where oneDNN may fuse linear layers."""
    model, values = load("sd1_tiny", "Q8_0")
    call = inputs(TINY["sd1_tiny"], size=(64, 64))
    out = model.model.diffusion_model(**call, transformer_options={})
    assert relative_error(out, network(opened("sd1_tiny", "Q8_0")[0], values)(**call)) <= 1e-5


@pytest.mark.slow
@pytest.mark.one_host
def test_the_panel_says_the_types_and_the_bytes_of_the_loaded_model(pack, opened, load):
    path, _ = opened("svd", "Q8_0")
    clip = pack("nodes.bridge.info.file_info").Clip(256, 256, 8, 0)
    describe, loader = pack("nodes.bridge.info.describe").describe, pack("nodes.bridge.model.unet_loader")
    for options, line in (({}, "kept quantized: Q8_0"), ({"dtype": torch.float16}, "dequantized while loading: Q8_0")):
        lines = [row["text"] for row in pack("nodes.bridge.info.file_info").unet_file_info(str(path), options, clip)["lines"]]
        text = describe(pack("unet").open_checkpoint(path), loader.load_model(str(path), options))
        assert any(row.startswith(line) for row in lines) and text.split("\n") == lines


# patches


def lowvram(model):
    model.patch_model(CPU, lowvram_model_memory=1024)
    assert any(layer(model, name).weight_function for name in LAYERS)


@pytest.mark.parametrize("kind", ["Q8_0", pytest.param("Q4_0", marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", [lambda model: model.patch_model(CPU), lowvram], ids=["fully loaded", "low VRAM"])
def test_a_lora_acts_exactly_and_leaves_the_quantized_weights_behind(load, way, kind):
    model, values = load("svd", kind)
    weights, deltas = lora(values)
    before = {name: layer(model, name).weight._qdata.clone() for name in LAYERS}
    for strength in (1.0, -0.4):  # changed: unloaded and loaded again
        with_lora = patched(model, weights, strength)
        way(with_lora)
        for name in LAYERS:
            for _call in range(2):
                found = used(layer(with_lora, name)) - values[f"{name}.weight"]
                assert relative_error(found, strength * deltas[name]) <= 1e-5
        with_lora.unpatch_model(CPU)
        for name in LAYERS:
            weight = layer(model, name).weight
            assert isinstance(weight, QuantizedTensor) and torch.equal(weight._qdata, before[name])
            assert torch.equal(used(layer(model, name)), values[f"{name}.weight"])


@pytest.mark.parametrize("kind", ["Q8_0", pytest.param("Q4_0", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_lora_acts_exactly_on_each_call_of_the_dynamic_path_by_the_hosts_functions_on_a_cpu(load, monkeypatch, name, kind):
    """No card, and no aimdo: only what the host itself does with a weight that is staged so.

    It would quantize the patched weight again and keep that: with Q4_0 the LoRA is gone from the second call on.
    """
    model, values = load("svd", kind, own=True)
    weights, deltas = lora(values)
    with_lora, module = patched(model, weights), layer(model, name)
    staged(monkeypatch, module, f"diffusion_model.{name}", with_lora.patches)
    for _call in range(3):  # "cpu" as a text: the host does not stage for the device itself
        found = used(module, device="cpu") - values[f"{name}.weight"]
        assert relative_error(found, deltas[name]) <= 1e-5
    assert isinstance(module._v_weight, QuantizedTensor)
    assert torch.equal(module._v_weight._qdata, module.weight._qdata)


def test_a_small_layer_that_the_dynamic_path_loads_by_force_becomes_plain(load):
    """It calls `patch_weight_to_device` without a patch then (0.30.0)."""
    model, values = load("svd")
    key = f"diffusion_model.{LINEAR}.weight"
    if "force_cast" not in model.patch_weight_to_device.__code__.co_varnames:
        pytest.skip("this host loads none by force")
    model.patch_weight_to_device(key, device_to=CPU, force_cast=True)
    assert torch.equal(layer(model, LINEAR).weight, values[f"{LINEAR}.weight"])
    model.unpatch_model(CPU)
    assert isinstance(layer(model, LINEAR).weight, QuantizedTensor)


def test_a_partly_unloaded_lora_acts_once(load):
    """The host takes the patched weights of layers back one by one and patches them in each call from then on."""
    model, values = load("svd")
    weights, deltas = lora(values)
    with_lora = patched(model, weights)
    with_lora.patch_model(CPU)
    with_lora.partially_unload(CPU, 10**12)
    for name in LAYERS:
        assert isinstance(layer(model, name).weight, QuantizedTensor)
        assert relative_error(used(layer(model, name)) - values[f"{name}.weight"], deltas[name]) <= 1e-5
    with_lora.unpatch_model(CPU)


def test_hooks_patch_weights_and_take_their_patches_back(load):
    """As the sampler does with a LoRA of a hook for one of two prompts: on, off, on again."""
    model, values = load("svd")
    weights, deltas = lora(values)
    hooks = comfy.hooks.create_hook_lora(weights, 1.0, 0.0)
    model.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    for _round in range(2):
        model.apply_hooks(hooks)
        for name in LAYERS:
            assert relative_error(used(layer(model, name)) - values[f"{name}.weight"], deltas[name]) <= 1e-5
        model.apply_hooks(None)
        for name in LAYERS:
            assert isinstance(layer(model, name).weight, QuantizedTensor)
            assert torch.equal(used(layer(model, name)), values[f"{name}.weight"])
    model.clean_hooks()


@pytest.mark.slow  # the host lists all weights once for each that it merges
def test_merged_models_are_the_sums_of_their_values(load, node):
    model, values = load("two levels", "Q8_0")
    other, others = load("two levels", "Q4_0")
    merged = run_node(node("ModelMergeSimple"), model, other, 0.25)[0]
    merged.patch_model(CPU)
    for name in LAYERS:
        key = f"{name}.weight"
        assert relative_error(used(layer(merged, name)), 0.25 * values[key] + 0.75 * others[key]) <= 1e-6
    merged.unpatch_model(CPU)
    assert torch.equal(used(layer(model, CONV)), values[f"{CONV}.weight"])


# copies and files


def test_a_deep_copy_has_weights_of_its_own(load):
    model, values = load("svd")
    made = copy.deepcopy(model.model.diffusion_model)
    for name in LAYERS:
        own = made.get_submodule(name)
        assert own.weight._qdata.data_ptr() != layer(model, name).weight._qdata.data_ptr()
        assert torch.equal(used(own), values[f"{name}.weight"])


def test_a_second_copy_of_the_pack_has_a_layout_of_its_own(pack, load):
    """The host looks layouts up by name; another version of the pack may know other types."""
    layout = pack("nodes.bridge.model.packed_layout")
    model, values = load("svd")
    assert layout.__name__ in layer(model, LINEAR).weight._layout_cls
    importlib.reload(layout)
    assert torch.equal(used(layer(model, LINEAR)), values[f"{LINEAR}.weight"])


@pytest.mark.parametrize("way", [
    pytest.param(lambda model: model.patch_model(CPU), id="fully loaded", marks=pytest.mark.slow),
    pytest.param(lowvram, id="low VRAM"),
])
def test_the_host_saves_the_values_with_their_patches(load, tmp_path, way):
    model, values = load("svd")
    weights, deltas = lora(values, (LINEAR,))
    with_lora = patched(model, weights)
    way(with_lora)
    comfy.utils.save_torch_file(with_lora.state_dict_for_saving(), tmp_path / "saved.safetensors", {})
    with_lora.unpatch_model(CPU)
    saved = load_file(tmp_path / "saved.safetensors")
    for name, value in values.items():
        found = saved[f"model.diffusion_model.{name}"]
        if name == f"{LINEAR}.weight":
            assert relative_error(found - value, deltas[LINEAR]) <= 1e-5
        else:
            assert torch.equal(found, value), name


# nodes of the host


@pytest.mark.slow
@pytest.mark.one_host
def test_a_compiled_model_computes_the_same(load, node):
    model, _ = load("one level")
    expected = run(model, ONE_LEVEL, 2)
    torch._dynamo.reset()
    compiled = torch.compile(model.model.diffusion_model, backend="eager")
    call = inputs(ONE_LEVEL, frames=2)
    assert relative_error(compiled(**call, num_video_frames=2, transformer_options={}), expected) <= 1e-6
    torch._dynamo.reset()


@pytest.mark.slow
def test_freeu_and_easycache_act_as_on_dequantized_weights(load, node, without_fused_layers):
    model, _ = load("sd1_tiny")
    plain, _ = load("sd1_tiny", dtype=torch.float32)
    conds = prompts(TINY["sd1_tiny"])
    results = []
    for each in (model, plain):
        each = run_node(node("FreeU"), each, 1.3, 1.4, 0.9, 0.2)[0]
        each = run_node(node("EasyCache"), each, 0.2, 0.15, 0.95, False)[0]
        results.append(sample(each, *conds, frames=1, steps=4))
    assert torch.equal(*results)
