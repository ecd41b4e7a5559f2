"""Load LoRA (SVD and all): every spelling reaches every layer, and changes it as the formula says."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from support.families import TINY, relative_error
from support.lora_kinds import ALPHA, KINDS, RANK
from support.loras import SPELLINGS, STRENGTH, diffusers_paths, factors, keys, loader, product, weights_of
from support.oracle import SMALL, TWO_LEVELS, Pair, prompts, run_node, sample

# Layers of SVD with weights of two dimensions, four and five.
LINEAR, CONV = "middle_block.1.time_stack.0.ff.net.2", "middle_block.0.in_layers.2"
CONV_OVER_TIME = "input_blocks.1.0.time_stack.in_layers.2"


@pytest.fixture(scope="module")
def pairs(pack, tmp_path_factory):
    made = {}

    def pair(name):
        if name not in made:
            family, config = ("svd", TWO_LEVELS) if name == "small svd" else (name, None)
            made[name] = Pair(pack, tmp_path_factory.mktemp("unets"), family, config=config)
        return made[name]

    return pair


@pytest.fixture
def load(node, tmp_path, monkeypatch):
    return loader(node, tmp_path, monkeypatch)


def check(model, patched, expected: dict, at_most=4e-7):
    """The patched MODEL has these weights and no other change; without it the MODEL is what it was, bit for bit."""
    before = weights_of(model)
    after = weights_of(patched)
    errors = {name: relative_error(after[name], value) for name, value in expected.items()}
    assert max(errors.values()) <= at_most, max(errors, key=errors.get)
    assert all(after[name].equal(value) for name, value in before.items() if name not in expected)
    again = weights_of(model)
    assert all(again[name].equal(value) for name, value in before.items())


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("name", [
    "svd", "sd1", "sd1_tiny", "sd2", "sd2_tiny", "unclip_h", "x4_upscaler", "sdxl", "sdxl_refiner", "ssd_1b", "koala_1b",
])
def test_each_spelling_of_each_layer_is_known(pack, name):
    names, lora_file = pack("nodes.bridge.model.lora_names"), pack("unet.weights.lora_file")
    config = TINY[name]
    table = names.layers_by_name(pack("unet").UNetModel(config, device="meta"))
    for own, theirs in diffusers_paths(config, pack("nodes.bridge.model.unet_loader").host_config(config)).items():
        for spelling in SPELLINGS:
            found = [lora_file.parameter_of(key) for key in keys(spelling, own, theirs)]
            assert [parameter for _, parameter in found] == ["lora_up.weight", "lora_down.weight", "alpha"]
            assert {table[layer].key for layer, _ in found} == {f"diffusion_model.{own}.weight"}


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("name", ["sd1", "sdxl", "svd", "koala_700m"])
def test_the_names_are_those_of_diffusers_own_network(pack, name):
    from support.diffusers_models import diffusers_network

    theirs = {key.removesuffix(".weight") for key, _ in diffusers_network(TINY[name]).named_parameters() if key.endswith(".weight")}
    assert theirs == set(diffusers_paths(TINY[name], pack("nodes.bridge.model.unet_loader").host_config(TINY[name])).values())


@pytest.mark.parametrize("name", [
    "sd1", "svd", *(pytest.param(name, marks=pytest.mark.one_host) for name in ("sd2", "sdxl", "koala_700m")),
])
@pytest.mark.slow
def test_weights_are_changed_as_the_formula_says(pairs, load, monkeypatch, name):
    """W + strength · alpha / rank · up · down in fp64; the layers in turn under another spelling, with an alpha and without."""
    monkeypatch.setitem(SMALL, "koala_700m", replace(TINY["koala_700m"], model_channels=32, head_channels=32))
    model, _ = pair = pairs(name)
    generator = torch.Generator().manual_seed(4)
    tensors, expected = {}, {}
    paths = diffusers_paths(pair.config, model.model.model_config.unet_config)
    layers = [(own, theirs) for own, theirs in paths.items() if pair.weights[f"{own}.weight"].ndim > 1]
    for place, (own, theirs) in enumerate(layers):
        weight = pair.weights[f"{own}.weight"]
        up_key, down_key, alpha_key = keys(list(SPELLINGS)[place % len(SPELLINGS)], own, theirs)
        tensors[up_key], tensors[down_key] = up, down = factors(weight.shape, RANK, generator)
        alpha = ALPHA if place // len(SPELLINGS) % 2 else RANK
        if alpha != RANK:
            tensors[alpha_key] = torch.tensor(alpha)
        expected[f"{own}.weight"] = weight.double() + STRENGTH * alpha / RANK * product(up, down, weight.shape)
    patched, info = load(model, tensors)
    kinds = ""
    if name == "svd":
        over_time = sum(".time_" in own for own, _ in layers)
        kinds = f", {len(layers) - over_time} spatial and {over_time} temporal"
        assert over_time > 100 and {len(pair.weights[weight].shape) for weight in expected} == {2, 4, 5}
    assert info.split("\n")[1:] == [
        f"acts on {len(layers)} of its {len(layers)} layers{kinds}; strength 0.75", "no alpha in the file: taken to be the rank"
    ]
    check(model, patched, expected)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_changes_weights_of_each_dimension_as_its_formula_says(pairs, load, name):
    """A linear layer over time, a convolution, and one over time, whose kernel has five dimensions."""
    model, _ = pair = pairs("small svd")
    tensors, expected = {}, {}
    for layer in (LINEAR, CONV, CONV_OVER_TIME):
        parameters, expected[f"{layer}.weight"] = KINDS[name](pair.weights[f"{layer}.weight"].double())
        parameters = {"alpha": torch.tensor(ALPHA), **parameters}
        tensors |= {f"diffusion_model.{layer}.{key}": value for key, value in parameters.items() if value is not None}
    patched, info = load(model, tensors)
    assert info.split("\n")[1:] == ["acts on 3 of its 3 layers, 1 spatial and 2 temporal; strength 0.75"]
    check(model, patched, expected, at_most=4e-6 if name.startswith(("loha", "lokr", "glora")) else 4e-7)


@pytest.mark.parametrize("stages, alpha", [((), None), ((2,), None), ((), 4.0)])
def test_rotations_turn_the_rows_and_keep_their_products(pairs, load, stages, alpha):
    """OFT and BOFT: Q is orthogonal, so that W'ᵀW' = WᵀW; ComfyUI alone would leave out a BOFT without an alpha."""
    model, _ = pair = pairs("small svd")
    count = pair.weights[f"{CONV}.weight"].shape[0] // 4
    blocks = torch.randn(*stages, count, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.2
    tensors = {f"diffusion_model.{CONV}.oft_blocks": blocks}
    if alpha is not None:
        tensors[f"diffusion_model.{CONV}.alpha"] = torch.tensor(alpha)
    patched, info = load(model, tensors, strength=1.0)
    before, after = (weights_of(one)[f"{CONV}.weight"].double().flatten(1) for one in (model, patched))
    assert relative_error(after.T @ after, before.T @ before) <= 1e-5 < 0.05 < relative_error(after, before)
    assert "OFT" not in info and "OFT on 1 layers" in load(model, tensors, strength=0.5)[1]


def test_norms_biases_and_mix_factors_are_changed(pairs, load):
    model, _ = pair = pairs("small svd")
    mixer, norm = "input_blocks.1.0.time_mixer.mix_factor", "input_blocks.1.1.time_stack.0.norm1"
    changes = {
        f"diffusion_model.{mixer}.diff": torch.tensor([0.5]),
        "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.w_norm": torch.randn(32),
        "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.b_norm": torch.randn(32),
        f"lora_unet_{LINEAR.replace('.', '_')}.diff_b": torch.randn(pair.weights[f"{LINEAR}.bias"].shape),
    }
    names = [mixer, f"{norm}.weight", f"{norm}.bias", f"{LINEAR}.bias"]
    patched, info = load(model, changes)
    assert "acts on 3 of its 3 layers, 0 spatial and 3 temporal" in info
    changed = zip(names, changes.values(), strict=True)
    check(model, patched, {name: pair.weights[name] + STRENGTH * change.double() for name, change in changed})


def test_peft_and_dora_as_comfyui_computes_it(pairs, load):
    """PEFT's magnitudes are rows of one dimension; divided is by the norm of the unchanged weight, and the info says it."""
    model, _ = pair = pairs("small svd")
    weight = pair.weights[f"{LINEAR}.weight"].double()
    up, down = factors(weight.shape, RANK, torch.Generator().manual_seed(1))
    magnitude = torch.rand(len(weight)) + 0.5
    path = "base_model.model.mid_block.attentions.0.temporal_transformer_blocks.0.ff.net.2"
    parameters = {"lora_A": down, "lora_B": up, "lora_magnitude_vector": magnitude}
    patched, info = load(model, {f"{path}.{name}.default.weight": value for name, value in parameters.items()}, strength=1.0)
    made = (weight + product(up, down, weight.shape)) * (magnitude.double() / weight.norm(dim=1))[:, None]
    check(model, patched, {f"{LINEAR}.weight": made})
    assert "DoRA on 1 layers" in info


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "svd"])
def test_a_model_of_the_hosts_loader_takes_it_as_well(pairs, load, name):
    ours, host = pair = pairs(name)
    paths = diffusers_paths(pair.config, ours.model.model_config.unet_config)
    generator, tensors = torch.Generator().manual_seed(4), {}
    for own, theirs in paths.items():
        if ".attn1.to_" in own:  # temporal ones too, as SVD_Xtend's script trains and saves them
            up_key, down_key, _ = keys("diffusers", own, theirs)
            tensors[up_key], tensors[down_key] = factors(pair.weights[f"{own}.weight"].shape, RANK, generator)
    patched = [load(model, tensors)[0] for model in (ours, host)]
    same = [weights_of(model) for model in patched]
    assert same[0].keys() == same[1].keys() and all(same[0][name].equal(value) for name, value in same[1].items())
    assert sum(not value.equal(pair.weights[name]) for name, value in same[0].items()) == len(tensors) // 2 > 60


@pytest.mark.parametrize("settings, alpha", [
    ({"unet.lora_alpha": 8, "unet.r": 4}, 8.0),
    ({"lora_alpha": 6.0}, 6.0),
    ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"mid_block.attentions.0.proj_in": 1, "attentions.0.proj_out": 5}}, 1.0),
    ({"unet.lora_alpha": 4, "unet.use_rslora": True}, 4 * RANK ** 0.5),
    ({"text_encoder.lora_alpha": 8}, RANK),
])
def test_alpha_of_the_training_is_taken_from_the_metadata(pairs, load, settings, alpha):
    """diffusers keeps PEFT's settings there, and none of them in tensors."""
    model, _ = pair = pairs("small svd")
    weight = pair.weights["middle_block.1.proj_in.weight"]
    up, down = factors(weight.shape, RANK, torch.Generator().manual_seed(1))
    path = "unet.mid_block.attentions.0.proj_in"
    tensors = {f"{path}.lora.down.weight": down, f"{path}.lora.up.weight": up}
    patched, info = load(model, tensors, metadata={"lora_adapter_metadata": json.dumps(settings)})
    made = weight.double() + STRENGTH * alpha / RANK * product(up, down, weight.shape)
    check(model, patched, {"middle_block.1.proj_in.weight": made})
    assert ("no alpha" in info) == ("text_encoder.lora_alpha" in settings)


def test_alpha_of_peft_is_taken_from_the_config_next_to_the_file(pairs, load, tmp_path):
    model, _ = pair = pairs("small svd")
    weight = pair.weights["middle_block.1.proj_in.weight"]
    up, down = factors(weight.shape, RANK, torch.Generator().manual_seed(1))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": RANK}))
    path = "base_model.model.mid_block.attentions.0.proj_in"
    patched, _ = load(model, {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up})
    made = weight.double() + STRENGTH * 8 / RANK * product(up, down, weight.shape)
    check(model, patched, {"middle_block.1.proj_in.weight": made})


def test_the_hosts_own_node_stays_as_it_is(pairs, load, node):
    """On our MODEL: it reaches what it reached, and both nodes add up."""
    model, _ = pair = pairs("small svd")
    up, down = factors(pair.weights[f"{LINEAR}.weight"].shape, RANK, torch.Generator().manual_seed(1))
    tensors = {f"lora_unet_{LINEAR.replace('.', '_')}.lora_{way}.weight": value for way, value in (("up", up), ("down", down))}
    ours, _ = load(model, tensors)
    both = run_node(node("LoraLoaderModelOnly"), ours, "l.safetensors", 0.25)[0]
    weight = pair.weights[f"{LINEAR}.weight"].double()
    check(model, both, {f"{LINEAR}.weight": weight + product(up, down, weight.shape)})


def test_the_network_computes_with_the_patched_weights(pack, pairs, load):
    """Sampled, two ways: with the LoRA, and from a file into which it was merged."""
    model, _ = pair = pairs("small svd")
    weight = pair.weights[f"{CONV_OVER_TIME}.weight"]
    up, down = factors(weight.shape, RANK, torch.Generator().manual_seed(1))
    factors_of = {"up": up, "down": down}
    patched, _ = load(model, {f"diffusion_model.{CONV_OVER_TIME}.lora_{way}.weight": value for way, value in factors_of.items()})
    merged = {**pair.weights, f"{CONV_OVER_TIME}.weight": (weight.double() + STRENGTH * product(up, down, weight.shape)).float()}
    save_file(merged, pair.path.with_name("merged.safetensors"), {"temporal_unet.head_channels": str(pair.config.head_channels)})
    other = pack("nodes.bridge.model.unet_loader").load_model(str(pair.path.with_name("merged.safetensors")))
    with_lora, without, from_file = (sample(one, *prompts(pair.config)) for one in (patched, model, other))
    assert relative_error(with_lora, from_file) <= 1e-5 < 1e-3 < relative_error(without, from_file)
