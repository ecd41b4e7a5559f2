"""Quantized safetensors files as MODELs: kept as they are stored, equal to the host's own network, exact under patches."""

from dataclasses import replace

import comfy.cli_args
import comfy.hooks
import comfy.memory_management
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.sd
import comfy.utils
import pytest
import torch
from safetensors.torch import load_file, save_file

from support import small
from support.dynamic_path import staged
from support.families import PREFIX, relative_error
from support.oracle import CPU, ROWS, SMALL, host_model, prompts, run_node, sample
from support.quantized import SPELLINGS, bytes_of, linear, quantize, write_quantized

CONFIG = replace(small.SVD, context_dim=32)
ALGOS = comfy.quant_ops.QUANT_ALGOS
LAYER = "middle_block.1.transformer_blocks.0.ff.net.2"
NEW = pytest.mark.skipif("int8_tensorwise" not in ALGOS, reason="this host does not know it")


@pytest.fixture
def load(pack, tmp_path):
    """Writes a file (as `write_quantized` takes it) and loads it: (MODEL, dequantized weights); `model` loads what is there."""
    path = tmp_path / "model.safetensors"

    def model(**options):
        return pack("nodes.bridge.model.unet_loader").load_model(str(path), options)

    def load(config=CONFIG, *args, options=None, **kwargs):
        _, _, plain = write_quantized(path, config, *args, **kwargs)
        return model(**(options or {})), plain

    load.path, load.model = path, model
    return load


def values(network) -> dict[str, torch.Tensor]:
    """The weights of our network, dequantized."""
    weights = {name: weight for name, weight in network.named_parameters() if not name.endswith("_scale")}
    return {name: weight.dequantize() if is_quantized(weight) else weight for name, weight in weights.items()}


def is_quantized(weight) -> bool:
    return isinstance(weight, comfy.quant_ops.QuantizedTensor)


def kept(network) -> set[str]:
    return {name for name, parameter in network.named_parameters() if is_quantized(parameter)}


def call(config, frames=2):
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(frames, 3, config.context_dim, generator=generator)
    inputs = {"context": context, "transformer_options": {"cond_or_uncond": [0]}}
    if config.adm_channels:
        inputs["y"] = torch.randn(frames, config.adm_channels, generator=generator)
    if config.temporal:
        inputs |= {"num_video_frames": frames, "context": context[:, :1]}
    x = torch.randn(frames, config.in_channels, 8, 8, generator=generator)
    return (x, torch.full((frames,), 500.0)), inputs


def run(network, config):
    args, kwargs = call(config)
    return network(*args, **kwargs)


def plain_network(pack, config, weights):
    """Our network on plain weights, with the host's layers that compute as its quantized ones do, and no quick ones."""
    network = pack("nodes.bridge.model.host_unet").UNetModel(config, operations=comfy.ops.manual_cast, dtype=torch.float32)
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()


@pytest.mark.parametrize("spelling", [
    name if name == "metadata" else pytest.param(name, marks=pytest.mark.slow) for name in SPELLINGS
])
def test_every_spelling_equals_the_network_of_dequantized_weights_bit_for_bit(pack, load, spelling):
    model, plain = load(CONFIG, spelling)
    network = model.model.diffusion_model
    assert kept(network) == {name for name, weight in plain.items() if linear(name, weight)}
    assert all(torch.equal(weight, plain[name]) for name, weight in values(network).items())
    assert not any(parameter.is_meta for parameter in model.model.parameters())
    assert torch.equal(run(network, CONFIG), run(plain_network(pack, CONFIG, plain), CONFIG))


def hosts_own(config, name, spelling, dtype=torch.float8_e4m3fn, changed=None):
    """The host's MODEL with its own network and mixed-precision layers on the same tensors, which it converts itself."""
    file, metadata, _ = quantize(config, spelling, dtype)
    file.update(changed or {})
    file, _ = comfy.utils.convert_old_quants(file, "", metadata)
    return host_model(
        file, ROWS[name], head_channels=None if config.num_heads else config.head_channels,
        quant_config=comfy.utils.detect_layer_quantization(file, ""),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name, spelling", [("sd1", "old"), ("sdxl", "comfy_quant"), ("svd", "metadata")])
def test_sampling_equals_the_hosts_own_network_on_the_same_file(load, name, spelling):
    model, plain = load(SMALL[name], spelling)
    results = [sample(m, *prompts(SMALL[name])) for m in (model, hosts_own(SMALL[name], name, spelling))]
    assert relative_error(*results) <= 1e-4
    assert model.model_size() < 0.7 * sum(weight.nbytes for weight in plain.values())


def quantizable(plain, format_name) -> set[str]:
    """The weights that can be of this format: one of the host's rotates 256 columns at a time."""
    columns = 256 if format_name == "convrot_w4a4" else 1
    return {name for name, weight in plain.items() if linear(name, weight) and weight.shape[1] % columns == 0}


def packed(config, format_name):
    """The tensors of a network whose linear layers are quantized by the host itself where it can, and the weights dequantized."""
    layout, (tensors, _, plain) = ALGOS[format_name]["comfy_tensor_layout"], quantize(config, "comfy_quant", which=lambda *_: False)
    options = {"per_channel": True} if format_name == "int8_tensorwise" else {}
    for name in quantizable(plain, format_name):
        weight = comfy.quant_ops.QuantizedTensor.from_float(tensors.pop(name), layout, **options)
        stored = weight.state_dict(name)
        tensors |= {key: part.view(torch.uint8) if "float8_e8" in str(part.dtype) else part for key, part in stored.items()}
        tensors[name.removesuffix("weight") + "comfy_quant"] = bytes_of({"format": format_name})
        plain[name] = weight.dequantize()
    return tensors, plain


@pytest.mark.parametrize("format_name", [
    name if name in ("float8_e4m3fn", "int8_tensorwise") else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ALGOS)
])
def test_every_format_of_the_host_is_kept_and_gives_what_its_own_layers_give(load, format_name):
    tensors, plain = packed(CONFIG, format_name)
    save_file(tensors, load.path, {"temporal_unet.head_channels": str(CONFIG.head_channels)})
    model = load.model()
    network = model.model.diffusion_model
    assert kept(network) == quantizable(plain, format_name)
    assert all(torch.equal(weight, plain[name]) for name, weight in values(network).items())
    host = comfy.ops.mixed_precision_ops({}, torch.float32, disabled=ALGOS.keys()).Linear(
        plain[f"{LAYER}.weight"].shape[1], plain[f"{LAYER}.weight"].shape[0], device="cpu",
    )
    host.load_state_dict({key.removeprefix(f"{LAYER}."): part for key, part in tensors.items() if key.startswith(f"{LAYER}.")})
    x = torch.randn(2, 5, plain[f"{LAYER}.weight"].shape[1], generator=torch.Generator().manual_seed(2))
    assert torch.equal(network.get_submodule(LAYER)(x), host(x))
    weights = sum(part.nbytes for name, part in tensors.items() if not name.endswith("comfy_quant"))
    assert 0 <= model.model_size() - weights <= 16384  # the noise levels, which are no weights
    half = load.model(dtype=torch.float16).model.diffusion_model
    assert all(torch.equal(weight, plain[name].half()) for name, weight in values(half).items() if not name.endswith("mix_factor"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chosen_dtype_is_given_to_all_weights(load, dtype):
    model, plain = load(options={"dtype": dtype})
    network = model.model.diffusion_model
    assert not kept(network) and model.model.get_dtype() == dtype and model.model.model_config.quant_config is None
    assert all(torch.equal(w, plain[name].to(dtype)) for name, w in values(network).items() if not name.endswith("mix_factor"))


@pytest.mark.parametrize("fast", [False, True])
def test_a_choice_of_fp8_leaves_quantized_weights_as_the_hosts_loader_does(load, fast):
    options = {"dtype": torch.float8_e4m3fn, "fp8_optimizations": fast}
    model, plain = load(options=options)
    network = model.model.diffusion_model
    quantized = {name for name, weight in plain.items() if linear(name, weight)}
    found = values(network)
    assert kept(network) == quantized and all(torch.equal(found[name], plain[name]) for name in quantized)
    assert network.out[2].weight.dtype == torch.float8_e4m3fn and model.model.get_dtype_inference() == torch.float32
    assert network.get_submodule(LAYER).bias.dtype == torch.float32, "the host keeps what linear layers add in what they compute in"


def lora_of(plain, strength=0.7, rank=2):
    """(a LoRA of every linear layer, the weights with it in fp32)."""
    generator, lora, expected = torch.Generator().manual_seed(3), {}, dict(plain)
    for name, weight in plain.items():
        if linear(name, weight):
            up, down = (0.1 * torch.randn(shape, generator=generator) for shape in ((len(weight), rank), (rank, weight.shape[1])))
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            lora |= {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
            expected[name] = weight + strength * (up @ down)
    return lora, expected


def patched(model, plain, strength=0.7):
    """(the MODEL with a LoRA on every linear layer, the weights with it in fp32)."""
    lora, expected = lora_of(plain, strength)
    return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0], expected


def test_a_lora_acts_exactly_and_leaves_no_trace(load):
    model, plain = load()
    network = model.model.diffusion_model
    before = run(network, CONFIG)
    lora, expected = patched(model, plain)
    lora.patch_model(device_to=CPU)
    name = f"{LAYER}.weight"
    delta = expected[name] - plain[name]
    assert ((values(network)[name] - expected[name]).norm() / delta.norm()) <= 1e-5
    full = run(network, CONFIG)
    lora.unpatch_model(device_to=CPU)
    assert kept(network) == {name for name, weight in plain.items() if linear(name, weight)}
    assert torch.equal(run(network, CONFIG), before) and relative_error(full, before) > 1e-3
    lora.load(CPU, lowvram_model_memory=1)  # every layer patched as it is called
    for _ in range(2):
        assert relative_error(run(network, CONFIG), full) <= 1e-5
    assert kept(network)
    lora.detach()
    assert torch.equal(run(network, CONFIG), before)


@pytest.mark.slow
def test_hooks_patch_weights_and_take_their_patches_back(load):
    """As the sampler does with a LoRA of a hook for one of two prompts: on, off, on again."""
    model, plain = load()
    network, (lora, expected) = model.model.diffusion_model, lora_of(plain, 1.0)
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    model.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    for _round in range(2):
        model.apply_hooks(hooks)
        assert relative_error(values(network)[f"{LAYER}.weight"], expected[f"{LAYER}.weight"]) <= 1e-6
        model.apply_hooks(None)
        assert f"{LAYER}.weight" in kept(network)
        assert all(torch.equal(weight, plain[name]) for name, weight in values(network).items())


def test_a_lora_acts_exactly_on_each_call_of_the_dynamic_path_by_the_hosts_functions_on_a_cpu(load, monkeypatch):
    """No card, and no aimdo. The host's own layer has the patched weight quantized again from the second call on."""
    model, plain = load()
    lora, expected = patched(model, plain)
    module = model.model.diffusion_model.get_submodule(LAYER)
    staged(monkeypatch, module, f"diffusion_model.{LAYER}", lora.patches)
    for _call in range(3):  # "cpu" as a text: the host does not stage for the device itself
        weight, *_ = comfy.ops.cast_bias_weight(module, None, torch.float32, "cpu", torch.float32, offloadable=True)
        delta = expected[f"{LAYER}.weight"] - plain[f"{LAYER}.weight"]
        assert relative_error(weight - plain[f"{LAYER}.weight"], delta) <= 1e-5


@pytest.mark.parametrize("lowvram", [False, True])
@pytest.mark.parametrize("with_lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_the_host_saves_are_the_values(load, tmp_path, with_lora, lowvram):
    """It would write patched values with the scales of others; without scales a file is right wherever it is loaded."""
    model, plain = load()
    patched_model, expected = patched(model, plain) if with_lora else (model.clone(), plain)
    patched_model.load(CPU, lowvram_model_memory=1 if lowvram else 0)
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), patched_model)
    patched_model.detach()
    saved = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(tmp_path / "saved.safetensors").items()}
    assert expected.keys() == saved.keys()
    assert all(relative_error(saved[name], weight) <= 1e-6 for name, weight in expected.items() if weight.norm())


@pytest.mark.slow
def test_merging_takes_the_values(load, node):
    """Of files that name their quantized layers in different ways."""
    (model, plain), (second, of_second) = load(), load(CONFIG, "old", seed=2)
    merged = run_node(node("ModelMergeSimple"), model, second, 0.25)[0]
    merged.patch_model(device_to=CPU)
    found = values(merged.model.diffusion_model)
    assert all(relative_error(found[name], 0.25 * plain[name] + 0.75 * of_second[name]) <= 1e-6 for name in plain)
    merged.unpatch_model(device_to=CPU)


def test_a_convolution_that_is_stored_as_a_linear_layer_is_dequantized(load):
    """As some tools store the projections of Stable Diffusion 1."""
    config, proj_in = SMALL["sd1_tiny"], "output_blocks.1.1.proj_in.weight"
    file, _, plain = quantize(config, "bare", which=lambda name, weight: name.endswith("proj_in.weight"))
    save_file({name: tensor.flatten(1) if name.endswith("proj_in.weight") else tensor for name, tensor in file.items()}, load.path)
    network = load.model().model.diffusion_model
    assert not kept(network) and torch.equal(values(network)[proj_in], plain[proj_in]) and plain[proj_in].ndim == 4


@pytest.mark.slow
@pytest.mark.one_host
def test_what_is_said_of_a_file_and_of_its_model_is_the_same(pack, load):
    describe, info = pack("nodes.bridge.info.describe").describe, pack("nodes.bridge.info.file_info")
    count = sum(linear(*row) for row in quantize(CONFIG, "bare")[2].items())
    for dtype, said in ((None, "kept quantized"), (torch.float16, "dequantized while loading")):
        options = {} if dtype is None else {"dtype": dtype}
        model, plain = load(options=options)
        text = describe(pack("unet").open_checkpoint(load.path), model)
        lines = info.unet_file_info(str(load.path), options, info.Clip(64, 64, 2, 0))["lines"]
        assert f"{said}: float8_e4m3fn ({count})" in text and text.splitlines() == [row["text"] for row in lines]
    weights = sum(weight.numel() * (1 if linear(name, weight) else 4) for name, weight in plain.items())
    assert weights < load()[0].model_size() < 1.02 * weights


def test_without_comfy_kitchen_weights_are_dequantized_and_the_log_says_so(pack, load, caplog, monkeypatch):
    monkeypatch.setattr(pack("nodes.bridge.model.mixed_precision"), "KEPT", False)
    with caplog.at_level("INFO"):
        model, plain = load()
    assert all(torch.equal(weight, plain[name]) for name, weight in values(model.model.diffusion_model).items())
    assert not kept(model.model.diffusion_model) and "dequantized to torch.float32" in caplog.text
    tensors, _ = packed(CONFIG, "nvfp4")
    save_file(tensors, load.path, {"temporal_unet.head_channels": str(CONFIG.head_channels)})
    with pytest.raises(ValueError, match="is quantized as nvfp4. ComfyUI reads it by the package comfy-kitchen"):
        load.model()


@pytest.mark.skipif("mxfp8" in ALGOS, reason="this host knows it")
def test_a_format_that_this_host_does_not_know_is_refused_or_dequantized(load):
    model, plain = load(CONFIG, "comfy_quant", torch.int8)
    assert all(torch.equal(weight, plain[name]) for name, weight in values(model.model.diffusion_model).items())
    name = f"{LAYER}.weight"
    rows, columns = plain[name].shape
    changed = {
        name: plain[name].to(torch.float8_e4m3fn), f"{LAYER}.comfy_quant": bytes_of({"format": "mxfp8"}),
        f"{LAYER}.weight_scale": torch.zeros(-(-rows // 128) * 128, -(-columns // 128) * 4, dtype=torch.uint8),
    }
    save_file({**plain, **changed}, load.path, {"temporal_unet.head_channels": str(CONFIG.head_channels)})
    with pytest.raises(ValueError, match="mxfp8. This ComfyUI does not read it, ComfyUI 0.30.0 does: update it, or get the model"):
        load.model()


@NEW
def test_int8_rows_are_kept_whatever_the_shape_of_their_scales(load):
    """One of no second dimension would be taken for columns."""
    file, metadata, plain = quantize(CONFIG, "bare", torch.int8)
    file = {name: tensor.flatten() if name.endswith("weight_scale") else tensor for name, tensor in file.items()}
    save_file(file, load.path, {"temporal_unet.head_channels": str(CONFIG.head_channels)})
    network = load.model().model.diffusion_model
    assert kept(network) and all(torch.equal(weight, plain[name]) for name, weight in values(network).items())
