"""Weights with scales of their own: every spelling is read to the same values, and what cannot be read is named."""

import pytest
import torch
from safetensors.torch import save_file

from support import small
from support.families import PREFIX, inputs, random_weights
from support.quantized import SPELLINGS, bytes_of, fp8, linear, quantize, write_quantized
from unet import UNetFileError, UNetModel, load_unet, open_checkpoint

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
    model, call = UNetModel(CONFIG), inputs(CONFIG, frames=2)
    model.load_state_dict(plain)
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
    "an unknown format": (description({"format": "float2"}), [f"{LAYER}.weight is quantized as 'float2', expected one of", "nvfp4"]),
    "no format": (description({}), ["is quantized as 'None', expected one of"]),
    "scales of blocks": (description({"format": "mxfp8"}), ["weight_scale is F32 []", "quantized as mxfp8"]),
    "nf4": ({f"{LAYER}.weight.absmax": SCALE, f"{LAYER}.weight.quant_state.bitsandbytes__nf4": bytes_of("{}")}, ["as nf4 (bits"]),
    "fp4": ({f"{LAYER}.weight.quant_state.bitsandbytes__fp4": bytes_of("{}")}, ["as fp4 (bitsandbytes)", "or as GGUF"]),
    "GPTQ": ({f"{LAYER}.weight": None, f"{LAYER}.qweight": torch.zeros(8, 8, dtype=torch.int32)}, ["as GPTQ or AWQ", "qweight"]),
    "SVDQuant": ({f"{LAYER}.wscales": torch.ones(4), f"{LAYER}.qweight": torch.ones(4)}, ["as SVDQuant (Nunchaku)"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_named(path, fault):
    changes, words = FAULTS[fault]
    file, _, _ = quantize(CONFIG, "comfy_quant")
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
