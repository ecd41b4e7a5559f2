"""UNets out of GGUF files: every dialect, spelling and shape ends in the same network, dequantized or packed."""

from dataclasses import replace

import gguf
import pytest
import torch

from support import sdcpp_files, small
from support.families import PREFIX, inputs, random_weights, write_unet
from unet import UNetFileError, UNetModel, load_unet, open_checkpoint
from unet.weights.diffusers_names import diffusers_layers
from unet.weights.ggml_types import PackedTensor

FILES = sdcpp_files.FILES
HEADS = "temporal_unet.head_channels"


def values_in(path):
    """What the `gguf` package reads from a file: name to flat fp32 values."""
    tensors = gguf.GGUFReader(path).tensors
    return {found.name: gguf.dequantize(found.data, found.tensor_type).reshape(-1).copy() for found in tensors}


def expected_state(path, config, prefix=PREFIX):
    values = values_in(path)
    shapes = {name: tensor.shape for name, tensor in UNetModel(config, device="meta").state_dict().items()}
    return {name: torch.from_numpy(values[prefix + name]).reshape(shape) for name, shape in shapes.items()}


def write(path, weights, kind="Q8_0", names=str):
    """A file as the converters of the "comfy" dialect write it: all of more than one dimension quantized, F32 the rest."""
    writer = gguf.GGUFWriter(path, "sd1")
    writer.add_string(HEADS, "16")
    kind = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    for name, weight in weights.items():
        values, name = weight.numpy(), names(name)
        if values.ndim == 1 or block == 1:
            writer.add_tensor(name, values)
            continue
        if values.shape[-1] % block or values.ndim == 5:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            values = values.reshape(-1, 256 if values.size % 256 == 0 else block)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def same(state, expected):
    assert state.keys() == expected.keys()
    different = [name for name, value in expected.items() if not torch.equal(state[name], value)]
    assert different == []


@pytest.fixture
def video(tmp_path):
    """A video network that stable-diffusion.cpp wrote."""
    sdcpp_files.write_with_head_width(tmp_path / "sv3d.gguf", "sv3d_q4_0.gguf")
    return tmp_path / "sv3d.gguf"


@pytest.mark.parametrize("name", FILES)
def test_a_network_of_stable_diffusion_cpp_has_its_shapes_and_the_values_of_the_package(name, video):
    network = FILES[name][0]
    checkpoint = open_checkpoint(video if network == "sv3d_u" else sdcpp_files.FOLDER / name)
    assert (checkpoint.family.name, checkpoint.dialect, checkpoint.unexpected) == (network, "sdcpp", [])
    config = sdcpp_files.CONFIGS[network]
    assert checkpoint.config == config
    expected = expected_state(sdcpp_files.FOLDER / name, config)
    same(checkpoint.state_dict(torch.float32), expected)
    half = checkpoint.state_dict(torch.float16)
    same(half, {key: value.to(half[key].dtype) for key, value in expected.items()})
    assert {key for key, value in half.items() if value.dtype != torch.float16} == {key for key in half if "mix_factor" in key}


def test_a_network_from_a_quantized_file_runs_with_its_values():
    path = sdcpp_files.FOLDER / "sd1_mixed.gguf"
    oracle = UNetModel(sdcpp_files.CONFIGS["sd1"])
    oracle.load_state_dict(expected_state(path, oracle.config))
    call = inputs(oracle.config)
    assert torch.equal(load_unet(path, dtype=torch.float32)(**call), oracle.eval()(**call))


def test_quantized_weights_come_packed_or_dequantized_and_norms_always_dequantized(video):
    checkpoint = open_checkpoint(video)
    state, whole = checkpoint.state_dict(torch.float16, packed=True), checkpoint.state_dict(torch.float16)
    packed = {name: value for name, value in state.items() if isinstance(value, PackedTensor)}
    assert len(packed) > 50 and all(value.kind.name == "Q4_0" and len(value.shape) > 1 for value in packed.values())
    same({name: value.dequantize(torch.float16) if name in packed else value for name, value in state.items()}, whole)
    norms = [name for name in state if ".norm1.weight" in name and checkpoint.dtypes[checkpoint.names[name]] == "Q4_0"]
    assert norms and not packed.keys() & set(norms)


def test_a_file_says_how_it_is_quantized(video):
    checkpoint = open_checkpoint(video)
    tensors = gguf.GGUFReader(video).tensors
    assert checkpoint.quantization == {"Q4_0": sum(found.tensor_type.name == "Q4_0" for found in tensors)}
    assert checkpoint.dtype() == torch.float16  # of what is not quantized


def test_a_plain_file_is_not_quantized(tmp_path):
    write_unet(tmp_path / "a.safetensors", small.SD, dtype=torch.float16, metadata={HEADS: "16"})
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert (checkpoint.quantization, checkpoint.dialect) == ({}, None)


SPELLINGS = {
    "bare": ("a.gguf", str),
    "with a prefix, under another ending": ("a.safetensors", lambda name: PREFIX + name),
    "diffusers": ("a.bin", None),
}


@pytest.mark.parametrize("ending, names", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_video_network_of_the_other_dialect_has_the_values_of_the_package(ending, names, tmp_path):
    config = small.SVD
    if names is None:
        layers = diffusers_layers(config)
        def names(name):
            layer, _, parameter = name.rpartition(".")
            return f"{layers[layer]}.{parameter}"
    path = tmp_path / ending
    weights = random_weights(config)
    write(path, weights, names=names)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.config, checkpoint.dialect) == (config, "comfy")
    found = values_in(path)
    state = checkpoint.state_dict(torch.float32)
    same(state, {name: torch.from_numpy(found[names(name)]).reshape(weight.shape) for name, weight in weights.items()})
    assert sum(checkpoint.quantization.values()) == sum(weight.ndim > 1 for weight in weights.values())
    assert checkpoint.state_dict(packed=True)["input_blocks.1.0.time_stack.in_layers.2.weight"].shape == (32, 32, 3, 1, 1)


def as_convolution(shape):
    return (*shape, 1, 1) if len(shape) == 2 else shape


def folded(shape):
    return (shape[0] * shape[1], *shape[2:]) if len(shape) == 5 else shape


def squeezed(shape):
    return shape[:2] if tuple(shape[2:]) == (1, 1) else shape


@pytest.mark.parametrize("config, shapes", [
    (small.SVD, folded), (replace(small.SD, context_dim=1024), as_convolution),
    (replace(sdcpp_files.CONFIGS["sd1"], context_dim=768), squeezed),
], ids=["folded", "1x1 convolutions for linear layers", "linear layers for 1x1 convolutions"])
def test_tensors_in_another_shape_of_the_same_order_are_reshaped(config, shapes, tmp_path):
    weights = random_weights(config)
    only = ("proj_in.weight", "proj_out.weight", "time_stack")
    stored = {
        name: value.reshape(shapes(value.shape)) if any(part in name for part in only) else value for name, value in weights.items()
    }
    assert any(stored[name].shape != value.shape for name, value in weights.items())
    write(tmp_path / "a.gguf", stored, "F32")
    same(open_checkpoint(tmp_path / "a.gguf").state_dict(), weights)


def test_a_tensor_in_another_order_is_refused(tmp_path):
    weights = random_weights(small.SD)
    name = "input_blocks.1.1.transformer_blocks.0.ff.net.2.weight"
    write(tmp_path / "a.gguf", {**weights, name: weights[name].T.contiguous()}, "F32")
    with pytest.raises(UNetFileError, match=r"ff.net.2.weight is \[128, 32\] instead of \[32, 128\]"):
        open_checkpoint(tmp_path / "a.gguf")


def test_whole_numbers_are_no_weights(tmp_path):
    weights = random_weights(small.SD)
    write(tmp_path / "a.gguf", {**weights, "out.2.weight": weights["out.2.weight"].to(torch.int8)}, "F32")
    with pytest.raises(UNetFileError, match="^a.gguf: out.2.weight is I8, expected floating-point numbers"):
        open_checkpoint(tmp_path / "a.gguf")


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_read_stays_as_it_was_when_the_file_is_cut(packed, tmp_path):
    content = (sdcpp_files.FOLDER / "sd1_mixed.gguf").read_bytes()
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    checkpoint = open_checkpoint(path)
    expected = open_checkpoint(sdcpp_files.FOLDER / "sd1_mixed.gguf").state_dict()
    state = checkpoint.state_dict(packed=packed)
    path.write_bytes(content[:9000])
    same({name: value.dequantize() if isinstance(value, PackedTensor) else value for name, value in state.items()}, expected)
    with pytest.raises(UNetFileError, match="^a.gguf: it was changed after it was opened"):
        checkpoint.state_dict()


def test_mapped_packed_weights_are_the_bytes_of_the_file():
    checkpoint = open_checkpoint(sdcpp_files.FOLDER / "sd1_mixed.gguf")
    name = "output_blocks.0.1.transformer_blocks.0.attn2.to_k.weight"
    one, other = (checkpoint.state_dict(mapped=True, packed=True)[name] for _ in range(2))
    assert one.data.data_ptr() == other.data.data_ptr() != checkpoint.state_dict(packed=True)[name].data.data_ptr()


def test_a_gguf_file_of_another_kind_is_named(tmp_path):
    write(tmp_path / "a.gguf", {"blk.0.attn_q.weight": torch.ones(32, 32), "token_embd.weight": torch.ones(32, 32)})
    with pytest.raises(UNetFileError, match="^a.gguf: it holds no UNet of this family .found 2 tensors"):
        open_checkpoint(tmp_path / "a.gguf")
