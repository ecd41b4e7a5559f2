"""GGUF files of the programs that write them, against the `gguf` package and the weights that they were made of."""

import gguf
import numpy as np
import pytest
import torch

from support import sdcpp_files
from support.ggufs import gguf as file_of
from support.ggufs import list_pair, pair, shape_pair, tensor, text_pair
from unet.weights.files import open_any
from unet.weights.gguf_file import GGUFFile

# Root mean square of the error over that of the weights, at most: the types' own, on normally distributed numbers
ERRORS = {
    "F32": 0, "F16": 0, "Q8_0": 0.006, "Q6_K": 0.02, "Q5_K": 0.05, "Q5_1": 0.05, "Q5_0": 0.05, "Q4_K": 0.08, "Q4_1": 0.09,
    "Q4_0": 0.1, "IQ4_NL": 0.1, "IQ4_XS": 0.1, "Q3_K": 0.18, "Q2_K": 0.35,
}


@pytest.mark.parametrize("name", sdcpp_files.FILES)
def test_a_file_of_stable_diffusion_cpp_has_the_values_that_the_package_reads(name):
    ours = open_any(sdcpp_files.FOLDER / name)
    theirs = gguf.GGUFReader(sdcpp_files.FOLDER / name).tensors
    assert {found.name for found in theirs} == ours.keys()
    for found in theirs:
        expected = gguf.dequantize(found.data, found.tensor_type).reshape(found.shape[::-1])
        assert ours.get_slice(found.name).get_dtype() == found.tensor_type.name
        assert ours.get_slice(found.name).get_shape() == list(expected.shape)
        assert np.array_equal(ours.get_tensor(found.name).float().numpy().view(np.uint32), expected.view(np.uint32)), found.name


@pytest.mark.parametrize("name", sdcpp_files.FILES)
def test_a_file_of_stable_diffusion_cpp_is_near_the_weights_that_it_was_made_of(name, tmp_path):
    source = sdcpp_files.write_source(tmp_path / "source.safetensors", sdcpp_files.FILES[name][0])
    file = open_any(sdcpp_files.FOLDER / name)
    kinds = set()
    for key in file.keys():
        weight, kind = source[key.removeprefix("model.diffusion_model.")].float(), file.get_slice(key).get_dtype()
        found = file.get_tensor(key).float().reshape(weight.shape)
        kinds.add(kind)
        assert (found - weight).norm() <= ERRORS[kind] * weight.norm(), (key, kind)
    assert kinds == {"sd1_mixed.gguf": ERRORS.keys() - {"F32"}, "sv3d_q4_0.gguf": {"F32", "F16", "Q4_0"}}[name]


def write_with_the_package(path):
    """A file as the converter of the other dialect writes it; returns its values."""
    values = torch.randn(24, 12, 3, 3, generator=torch.Generator().manual_seed(0)).numpy()
    writer = gguf.GGUFWriter(path, "sd1")
    writer.add_quantization_version(2)
    expected = {}
    for kind in ("Q8_0", "Q5_1", "BF16", "F16", "F32"):
        stored = values if kind in ("F16", "F32", "BF16") else values.reshape(-1, 96)  # rows of 3 are no blocks
        data = gguf.quantize(stored, gguf.GGMLQuantizationType[kind])
        if stored is not values:
            writer.add_array(f"comfy.gguf.orig_shape.{kind}", list(values.shape))
        writer.add_tensor(kind, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        expected[kind] = gguf.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(values.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_tensors_that_are_stored_in_other_rows_have_their_true_shape(tmp_path):
    expected = write_with_the_package(tmp_path / "a.gguf")
    file = open_any(tmp_path / "a.gguf")
    assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == dict.fromkeys(expected, (24, 12, 3, 3))
    assert {name: file.get_tensor(name).dtype for name in ("F16", "BF16", "F32", "Q8_0")} == {
        "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "Q8_0": torch.float32,
    }
    for name, values in expected.items():
        assert np.array_equal(file.get_tensor(name).float().numpy(), values), name


def test_a_packed_tensor_is_the_bytes_in_the_file(tmp_path):
    expected = write_with_the_package(tmp_path / "a.gguf")
    packed = open_any(tmp_path / "a.gguf").get_packed("Q8_0")
    assert (packed.kind.name, packed.shape, packed.data.shape) == ("Q8_0", (24, 12, 3, 3), (24 * 12 * 9 // 32 * 34,))
    assert np.array_equal(packed.dequantize().numpy(), expected["Q8_0"])


def test_the_dialect_shows_in_whether_an_architecture_is_named(tmp_path):
    write_with_the_package(tmp_path / "a.gguf")
    assert open_any(tmp_path / "a.gguf").dialect == "comfy"
    assert open_any(sdcpp_files.FOLDER / "sd1_mixed.gguf").dialect == "sdcpp"


def opened(tmp_path, *args, **kwargs) -> GGUFFile:
    (tmp_path / "a.gguf").write_bytes(file_of(*args, **kwargs))
    return open_any(tmp_path / "a.gguf")


def test_texts_are_metadata_and_other_values_are_passed_over(tmp_path):
    file = opened(tmp_path, pairs=[
        text_pair("temporal_unet.head_channels", "64"), pair("a", 0, b"\1"), pair("b", 12, bytes(8)), pair("c", 7, b"\1"),
        list_pair("d", 8, bytes(24), 3), list_pair("e", 10, bytes(80), 10), text_pair("long", "é" * 30_000),
    ])
    assert file.metadata() == {"temporal_unet.head_channels": "64", "long": "é" * 30_000}


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(version, tmp_path):
    data = np.arange(6, dtype=np.float32)
    file = opened(tmp_path, [tensor("a", (2, 3))], data=data.tobytes(), version=version)
    assert torch.equal(file.get_tensor("a"), torch.arange(6.).reshape(3, 2))


@pytest.mark.parametrize("alignment, start", [(1, 5), (4096, 4096)])
def test_data_may_lie_at_any_alignment(alignment, start, tmp_path):
    data = bytes(start) + np.arange(3, dtype=np.float32).tobytes()
    pairs = [pair("general.alignment", 4, alignment.to_bytes(4, "little")), shape_pair("a", (1, 3, 1, 1, 1))]
    file = opened(tmp_path, [tensor("a", (3,), offset=start)], pairs, data, alignment=alignment)
    assert torch.equal(file.get_tensor("a"), torch.arange(3.).reshape(1, 3, 1, 1, 1))


def test_writing_to_a_tensor_does_not_change_the_file(tmp_path):
    file = opened(tmp_path, [tensor("a", (2,))], data=bytes(8))
    before = (tmp_path / "a.gguf").read_bytes()
    file.get_tensor("a").add_(1)
    assert (tmp_path / "a.gguf").read_bytes() == before
