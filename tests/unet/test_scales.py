"""Weights with scales of their own: every spelling is read to the same values, and what cannot be read is named."""

import hashlib
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support import small
from support.families import PREFIX, in_diffusers_layout, inputs, random_weights
from support.quantized import SPELLINGS, bytes_of, fp8, linear, quantize, write_quantized
from unet import UNetFileError, UNetModel, load_unet, open_checkpoint
from unet.weights.files import open_file, shapes_and_dtypes_of
from unet.weights.scales import check_quantized, dequantized, find_quantized, network_shapes

CONFIG = small.SVD
HEADS = {"temporal_unet.head_channels": str(CONFIG.head_channels)}
LAYER = "middle_block.1.proj_in"  # a linear layer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def is_plain(state, plain):
    """Are these the dequantized weights, bit for bit?"""
    return state.keys() == plain.keys() and all(torch.equal(value, plain[name]) for name, value in state.items())


@pytest.mark.parametrize("spelling, dtype, prefix", [
    *((spelling, torch.float8_e4m3fn, PREFIX) for spelling in SPELLINGS), ("old", torch.float8_e5m2, ""),
    ("metadata", torch.float8_e4m3fn, ""), ("comfy_quant", torch.int8, "unet."), ("bare", torch.int8, ""),
])
def test_every_spelling_gives_the_stored_values_times_their_scales(path, spelling, dtype, prefix):
    _, _, plain = write_quantized(path, CONFIG, spelling, dtype, prefix=prefix)
    checkpoint = open_checkpoint(path)
    assert checkpoint.unexpected == [] and is_plain(checkpoint.state_dict(), plain)
    assert checkpoint.quantized.keys() == {name for name, weight in plain.items() if linear(name, weight)}
    assert checkpoint.dtype() == torch.float32  # of what is not quantized
    assert checkpoint.parameters == sum(weight.numel() for weight in plain.values())


def test_a_network_of_them_runs_as_that_of_the_dequantized_weights(path):
    _, _, plain = write_quantized(path, CONFIG)
    model, call = UNetModel(CONFIG, device="meta"), inputs(CONFIG, frames=2)
    model.load_state_dict(plain, assign=True)
    assert torch.equal(load_unet(path)(**call, num_frames=2), model.requires_grad_(False)(**call, num_frames=2))


def test_convolutions_may_be_scaled_too(path):
    """By one scale, or by one for each channel that they give; norms by one for each value."""
    for dtype in (torch.float8_e4m3fn, torch.int8):
        _, _, plain = write_quantized(path, CONFIG, "old", dtype, which=lambda name, weight: weight.ndim > 1)
        assert is_plain(open_checkpoint(path).state_dict(), plain)


def test_weights_come_as_they_are_stored_where_that_is_asked_for(path):
    file, _, plain = write_quantized(path, CONFIG, "old")
    state = open_checkpoint(path).state_dict(stored=[f"{LAYER}.weight"])
    assert state.keys() - plain.keys() == {f"{LAYER}.weight_scale", f"{LAYER}.input_scale"}
    assert torch.equal(state[f"{LAYER}.weight"].view(torch.uint8), file[f"{LAYER}.weight"].view(torch.uint8))
    assert torch.equal(state[f"{LAYER}.weight_scale"], file[f"{LAYER}.scale_weight"])


@pytest.mark.parametrize("full_precision", [False, True])
def test_the_old_marker_says_whether_it_is_computed_in_full_precision(path, full_precision):
    write_quantized(path, CONFIG, "old", full_precision=full_precision)
    options = open_checkpoint(path).quantized[f"{LAYER}.weight"].options
    assert options == {"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if full_precision else {})


def test_a_marker_without_scales_is_plain_fp8(path):
    weights = {name: weight.to(torch.float8_e4m3fn) for name, weight in random_weights(CONFIG).items()}
    save_file({**weights, "scaled_fp8": torch.zeros(2)}, path, HEADS)
    checkpoint = open_checkpoint(path)
    assert not checkpoint.quantized and not checkpoint.unexpected and checkpoint.dtype() == torch.float8_e4m3fn


def test_scales_of_another_model_in_the_file_are_not_the_unets(path):
    other = {"cond_stage_model.a.weight": torch.ones(4, 4), "cond_stage_model.a.scale_weight": torch.ones(7),
             "cond_stage_model.b.scale_weight": torch.ones(()), "cond_stage_model.scaled_fp8": torch.zeros(2)}
    _, _, plain = write_quantized(path, CONFIG, "old", beside=other)
    checkpoint = open_checkpoint(path)
    assert checkpoint.unexpected == [] and is_plain(checkpoint.state_dict(), plain)
    assert "full_precision_matrix_mult" not in checkpoint.quantized[f"{LAYER}.weight"].options


def test_what_the_network_does_not_use_is_still_listed(path):
    write_quantized(path, CONFIG, beside={f"{PREFIX}extra.weight": torch.ones(2), f"{PREFIX}zzz": torch.ones(2)})
    assert open_checkpoint(path).unexpected == ["extra.weight", "zzz"]


def test_two_weights_a_byte_have_the_shape_that_they_stand_for(path):
    """The network is detected from it: a packed key projection has half the context's width."""
    name = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    packed = {
        f"{PREFIX}{name}.weight": torch.zeros(32, 12, dtype=torch.uint8),
        f"{PREFIX}{name}.weight_scale": torch.zeros(128, 4, dtype=torch.uint8),
        f"{PREFIX}{name}.weight_scale_2": torch.ones(()), f"{PREFIX}{name}.comfy_quant": bytes_of({"format": "nvfp4"}),
    }
    write_quantized(path, CONFIG, beside=packed)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == CONFIG and checkpoint.quantized[f"{name}.weight"].format == "nvfp4"
    with pytest.raises(UNetFileError, match="to_k.weight is quantized as nvfp4, .* Get the model"):
        checkpoint.state_dict()


def description(options):
    return {f"{LAYER}.comfy_quant": bytes_of(options)}


WEIGHT = random_weights(CONFIG)[f"{LAYER}.weight"]
STORED, SCALE = fp8(WEIGHT)
FAULTS = {  # what is other than in a sound file (None: left out), and what is said of it
    "a scale without a weight": ({"middle_block.9.weight_scale": SCALE}, ["middle_block.9.weight_scale", "next to its weight"]),
    "no scale": ({f"{LAYER}.weight_scale": None}, [f"{LAYER}.weight is quantized as float8_e4m3fn", "weight_scale is missing"]),
    "a scale of another shape": ({f"{LAYER}.weight_scale": torch.ones(3)}, [f"{LAYER}.weight_scale is F32 [3]", "float8_e4m3fn"]),
    "a scale of another dtype": ({f"{LAYER}.weight_scale": torch.ones((), dtype=torch.int64)}, ["weight_scale is I64 []"]),
    "a scale of a plain weight": ({f"{LAYER}.weight": WEIGHT}, [f"{LAYER}.weight is F32, expected F8_E4M3"]),
    "another fp8": ({f"{LAYER}.weight": WEIGHT.to(torch.float8_e5m2)}, ["weight is F8_E5M2, expected F8_E4M3"]),
    "a scale that the format has not": ({f"{LAYER}.weight_scale_2": SCALE}, ["weight_scale_2 is F32 []", "no weight_scale_2 of"]),
    "no JSON": (description("{"), [f"{LAYER}.comfy_quant is '{{', expected JSON"]),
    "JSON of another kind": (description("[1]"), ["comfy_quant is '[1]', expected JSON"]),
    "deep JSON": (description("[" * 9000), ["comfy_quant is '[[[", "expected JSON"]),
    "no text": ({f"{LAYER}.comfy_quant": torch.full((9,), 255, dtype=torch.uint8)}, ["expected JSON"]),
    "a long description": ({f"{LAYER}.comfy_quant": torch.zeros(20_000, dtype=torch.uint8)}, ["U8 [20000], expected JSON"]),
    "numbers": ({f"{LAYER}.comfy_quant": torch.ones(3)}, ["comfy_quant is F32 [3], expected JSON"]),
    "an unknown format": (description({"format": "float2"}), [f"{LAYER}.weight is quantized as 'float2', expected one of float8_"]),
    "no format": (description({}), ["is quantized as 'None', expected one of"]),
    "scales of blocks": (description({"format": "mxfp8"}), ["weight_scale is F32 []", "quantized as mxfp8"]),
    "nf4 without settings": ({f"{LAYER}.weight.absmax": SCALE}, [f"{LAYER}.weight.absmax", "belong to no weight"]),
    "GPTQ": ({f"{LAYER}.qweight": torch.zeros(8, 8, dtype=torch.int32)}, ["as GPTQ or AWQ", "qweight", "or as GGUF"]),
    "SVDQuant": ({f"{LAYER}.wscales": torch.ones(4), f"{LAYER}.qweight": torch.ones(4)}, ["as SVDQuant (Nunchaku)"]),
}


SOUND = cache(lambda: quantize(CONFIG, "comfy_quant")[0])


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_named(path, fault):
    changes, words = FAULTS[fault]
    file = SOUND()
    file = {name: tensor for name, tensor in {**file, **changes}.items() if tensor is not None}
    save_file({PREFIX + name: tensor for name, tensor in file.items()}, path, HEADS)
    with pytest.raises(UNetFileError) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(path.name) and all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"layers": []}', '{"layers": {"a": 1}}', "[" * 100_000])
def test_metadata_that_describe_no_layers_are_named(path, text):
    file, _, _ = quantize(CONFIG, "metadata")
    save_file(file, path, {**HEADS, "_quantization_metadata": text})
    with pytest.raises(UNetFileError, match="^model.safetensors: its metadata _quantization_metadata .* Get the file again"):
        open_checkpoint(path)


FOUR_BIT = Path(__file__).resolve().parents[1] / "support" / "bitsandbytes_4bit.safetensors"
"""Four matrices [130, 130], quantized by `bitsandbytes.functional.quantize_4bit` 0.50.2 on a CPU (blocksize 64, seed 7), as nf4 and
fp4, with and without nested statistics; in the metadata the SHA-256 of what its `dequantize_4bit` makes of each, in fp32, zeros
without a sign."""


@pytest.mark.parametrize("layer", ["nf4", "fp4", "nf4_nested", "fp4_nested"])
def test_four_bit_weights_are_what_bitsandbytes_makes_of_them(layer):
    file = open_file(FOUR_BIT)
    shapes, dtypes = shapes_and_dtypes_of(file)
    found = find_quantized(file, dtypes, {})
    shapes, name = network_shapes(shapes, found), f"{layer}.weight"
    check_quantized(name, found[name], shapes, dtypes)
    values = dequantized(name, found[name], file.get_tensor)
    assert shapes[name] == values.shape == (130, 130)
    assert hashlib.sha256((values + 0.0).numpy().tobytes()).hexdigest() == file.metadata()[layer]


def four_bit(tensors, layer, **settings):
    """The tensors of one layer, with other settings."""
    state = f"{layer}.weight.quant_state.bitsandbytes__nf4"
    text = {"quant_type": "nf4", "blocksize": 64, "shape": [130, 130], "nested_blocksize": 256, "nested_offset": 0.5, **settings}
    return {**{name: tensor for name, tensor in tensors.items() if name.startswith(f"{layer}.")}, state: bytes_of(text)}


@pytest.mark.parametrize("settings, lost, words", [
    ({"shape": [130, 131]}, None, "8,450 bytes of two values each"), ({"shape": "a"}, None, "two values each"),
    ({"shape": [-130, -130]}, None, "two values each"), ({"shape": [True] * 9}, None, "two values each"),
    ({"blocksize": 0}, None, "give blocksize as 0"), ({"blocksize": 2**40}, None, "give blocksize as"),
    ({"blocksize": 32}, None, "the absmax of nf4_nested.weight is U8"), ({"nested_offset": 1}, None, "give nested_offset as 1"),
    ({"nested_offset": float("inf")}, None, "give nested_offset as inf"),
    ({"nested_blocksize": None}, None, "give nested_blocksize as None"), ({"nested_blocksize": 64}, None, "the nested_absmax of"),
    ({}, "quant_map", "the quant_map of nf4_nested.weight is missing"),
    ({}, "nested_quant_map", "nested_quant_map"), ({}, "nested_absmax", "the absmax of nf4_nested.weight is U8"),
])
def test_four_bit_weights_whose_settings_do_not_fit_are_named(path, settings, lost, words):
    tensors = four_bit(load_file(FOUR_BIT), "nf4_nested", **settings)
    tensors.pop(f"nf4_nested.weight.{lost}", None)
    save_file(tensors, path)
    with safe_open(path, "pt") as file, pytest.raises(UNetFileError, match=words):
        shapes, dtypes = shapes_and_dtypes_of(file)
        found = find_quantized(file, dtypes, {})
        check_quantized("nf4_nested.weight", found["nf4_nested.weight"], network_shapes(shapes, found), dtypes)


def test_a_network_with_four_bit_weights_is_read(path):
    """It is detected from the shapes that they stand for; here a key projection of the context."""
    layer = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    values = torch.tensor([0.0, *torch.linspace(-1, 1, 15).tolist()])
    file, _, plain = quantize(CONFIG, "bare", which=lambda *_: False)
    index = torch.randint(16, (32 * 24,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    plain[f"{layer}.weight"] = (values[index.long()] * 0.25).reshape(32, 24)
    settings = bytes_of({"shape": [32, 24], "blocksize": 64})
    file[f"{layer}.weight"] = (index[0::2] << 4 | index[1::2])[:, None]
    state = {"absmax": torch.full((12,), 0.25), "quant_map": values, "quant_state.bitsandbytes__nf4": settings}
    save_file({**file, **{f"{layer}.weight.{key}": tensor for key, tensor in state.items()}}, path, HEADS)
    checkpoint = open_checkpoint(path)
    assert checkpoint.unexpected == [] and checkpoint.config == CONFIG and is_plain(checkpoint.state_dict(), plain)


def test_scales_move_with_their_layer_under_the_names_of_diffusers(path):
    file, _, plain = quantize(CONFIG, "comfy_quant")
    save_file(in_diffusers_layout(CONFIG, file), path, HEADS)
    checkpoint = open_checkpoint(path)
    assert checkpoint.unexpected == [] and is_plain(checkpoint.state_dict(), plain)
