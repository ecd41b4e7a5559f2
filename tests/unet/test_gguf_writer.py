"""Files that are written, GGUF and safetensors: as public readers read them, at which size, and what is refused."""

import math
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from safetensors import safe_open

from support.families import FULL, TINY, random_weights
from support.small import SVD
from unet import UNetFileError
from unet.weights.checkpoint import expected_shapes
from unet.weights.ggml_quantize import QUANTIZERS
from unet.weights.network_writer import FilePlan, take_name, written_part
from unet.weights.save_plan import DIALECTS, GGUF, SAFETENSORS, TYPES, Network, Wanted

MARKERS = {"v_pred": torch.tensor([]), "edm_vpred.sigma_max": torch.tensor(80.0), "cc_projection.weight": torch.ones(3, 2)}
METADATA = {"temporal_unet.num_frames": "14", "prompt": "{\"1\": \"漢字 é\"}", "empty": ""}


def network(weights, markers=MARKERS, metadata=METADATA, formats="F16"):
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    return Network(shapes, dict.fromkeys(weights, formats), markers, metadata)


def write(path, weights, wanted, **kwargs):
    plan = FilePlan(network(weights, **kwargs), wanted)
    tensors = {**weights, **MARKERS}
    with written_part(path.parent, plan, lambda tensor: tensors[tensor.name], lambda done: None) as part:
        assert part.stat().st_size == plan.size
        take_name(part, path)
    return plan


@pytest.fixture(scope="module")
def weights():
    return random_weights(SVD, dtype=torch.float16)


def as_read(tensor, original_shapes) -> torch.Tensor:
    """The values of a tensor of the public reader, which gives quantized ones as bytes."""
    shape = original_shapes.get(tensor.name) or [int(size) for size in reversed(tensor.shape)]
    return torch.from_numpy(np.array(quants.dequantize(tensor.data, tensor.tensor_type))).reshape(shape)


def string(field) -> str:
    return bytes(field.parts[field.data[0]]).decode()


@pytest.mark.parametrize(("kind", "dialect"), [
    ("fp16", "comfy"), ("Q4_0", "comfy"), ("Q8_0", "sdcpp"),
    *(pytest.param(kind, "comfy", marks=pytest.mark.slow) for kind in TYPES[GGUF] if kind not in ("fp16", "Q4_0")),
    *(pytest.param(kind, "sdcpp", marks=pytest.mark.slow) for kind in ("fp16", "Q4_1")),
])
def test_a_public_reader_finds_every_value_as_its_own_quantizers_round_it(tmp_path, weights, kind, dialect):
    write(tmp_path / "a.gguf", weights, Wanted(GGUF, kind, dialect))
    reader = GGUFReader(tmp_path / "a.gguf")
    shapes = {
        key.removeprefix("comfy.gguf.orig_shape."): [int(field.parts[index][0]) for index in field.data]
        for key, field in reader.fields.items() if ".orig_shape." in key
    }
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == [*weights, *MARKERS]
    for name, value in weights.items():
        tensor = found[name]
        data = quants.quantize(value.float().numpy().reshape(tensor.shape[::-1]), tensor.tensor_type)
        assert np.array_equal(data.view(np.uint8).reshape(-1), tensor.data.view(np.uint8).reshape(-1))
        read = as_read(tensor, shapes)
        assert read.shape == (value.shape if dialect == "comfy" or value.ndim < 5 else (value.shape[0] * value.shape[1], 3, 1, 1))
        if kind == "fp16":
            assert torch.equal(read.reshape(value.shape), value.float())
    assert {key: string(reader.fields[key]) for key in METADATA} == METADATA
    if dialect == "comfy":
        assert string(reader.fields["general.architecture"]) == "svd"  # which readers for images refuse in words
    else:
        assert set(reader.fields) - set(METADATA) == {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}


@cache
def shapes_of(config):
    return expected_shapes(config)


def plan_of(config, wanted, formats="F16"):
    shapes = shapes_of(config)
    return FilePlan(Network(shapes, dict.fromkeys(shapes, formats), {}, {}), wanted)


def test_each_dialect_quantizes_what_its_own_tools_quantize():
    comfy = {tensor.name: tensor.format for tensor in plan_of(FULL["svd"], Wanted(GGUF, "Q8_0")).tensors}
    sdcpp = {tensor.name: tensor.format for tensor in plan_of(FULL["svd"], Wanted(GGUF, "Q8_0", "sdcpp")).tensors}
    rows = {  # name -> (comfy, sdcpp)
        "input_blocks.1.0.in_layers.2.weight": ("Q8_0", "F16"),
        "input_blocks.1.0.time_stack.in_layers.2.weight": ("Q8_0", "F16"),
        "input_blocks.1.1.proj_in.weight": ("Q8_0", "Q8_0"),
        "input_blocks.1.1.time_stack.0.ff.net.2.weight": ("Q8_0", "Q8_0"),
        "input_blocks.1.0.emb_layers.1.weight": ("Q8_0", "Q8_0"),
        "input_blocks.0.0.weight": ("F16", "F16"), "out.2.weight": ("F16", "F16"),
        "time_embed.0.weight": ("F16", "F16"), "label_emb.0.2.weight": ("F16", "F16"),
        "input_blocks.1.1.norm.weight": ("F16", "F16"), "out.2.bias": ("F16", "F16"),
        "input_blocks.1.0.time_mixer.mix_factor": ("F32", "F32"),
    }
    assert {name: (comfy[name], sdcpp[name]) for name in rows} == rows
    from_fp32 = {tensor.name: tensor.format for tensor in plan_of(FULL["svd"], Wanted(GGUF, "Q8_0"), "F32").tensors}
    assert from_fp32["input_blocks.1.1.norm.weight"] == from_fp32["time_embed.0.weight"] == "F32"


@pytest.mark.parametrize(("kind", "dialect", "share"), [
    ("Q8_0", "comfy", 0.55), ("Q4_0", "comfy", 0.3), ("Q8_0", "sdcpp", 0.76), ("fp16", "comfy", 1.001),
])
def test_svd_at_full_size_takes_this_share_of_its_fp16_file(kind, dialect, share):
    assert plan_of(FULL["svd"], Wanted(GGUF, kind, dialect)).size < share * plan_of(FULL["svd"], Wanted(SAFETENSORS, "fp16")).size


@pytest.mark.parametrize("name", ["sd1", "koala_700m", "svd"])
def test_every_member_of_the_family_has_a_plan_in_every_type(name):
    for container, types in TYPES.items():
        for wanted in (Wanted(container, kind, dialect) for kind in types for dialect in DIALECTS):
            plan = plan_of(TINY[name], wanted)
            assert all(len(tensor.stored) <= 4 or container == SAFETENSORS for tensor in plan.tensors)
            assert all(math.prod(tensor.stored) == math.prod(tensor.shape) for tensor in plan.tensors)


@pytest.mark.parametrize(("kind", "dtype"), [
    ("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp8", torch.float8_e4m3fn),
])
def test_safetensors_reads_each_value_rounded_once(tmp_path, kind, dtype):
    weights = random_weights(SVD)
    write(tmp_path / "a.safetensors", weights, Wanted(SAFETENSORS, kind))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == METADATA
        for name, value in weights.items():
            small = torch.float16 if kind == "fp8" and value.ndim == 1 else dtype
            expected = torch.float32 if name.endswith("mix_factor") else small
            read = file.get_tensor(name)
            assert read.dtype == expected and torch.equal(read.float(), value.to(expected).float())
        assert all(torch.equal(file.get_tensor(name), value) for name, value in MARKERS.items())


def refused(*wanted) -> str:
    with pytest.raises(UNetFileError) as error:
        Wanted(*wanted)
    return str(error.value)


def test_a_type_that_a_container_is_not_written_in_is_refused_with_those_that_are():
    assert refused(GGUF, "Q4_K") == (
        "GGUF files are not written as Q4_K. The K and IQ formats of GGUF are read, not written. Choose fp16, bf16, fp32, Q8_0, "
        "Q5_1, Q5_0, Q4_1 or Q4_0."
    )
    assert "are read, not written" in refused(GGUF, "IQ4_XS")
    assert refused(SAFETENSORS, "Q8_0").endswith("Choose fp16, bf16, fp32 or fp8, or GGUF for Q8_0.")
    assert refused(GGUF, "fp8").endswith("or Q4_0, or safetensors for fp8.")


@pytest.mark.parametrize(("value", "kind", "words"), [
    (float("nan"), "Q8_0", "out.0.bias holds NaN or infinite values"),
    (float("inf"), "fp32", "out.0.bias holds NaN or infinite values"),
    (70000.0, "fp16", "out.0.bias has values up to 7e[+]04, which F16 cannot hold. Choose bf16 or fp32"),
])
def test_values_that_a_format_cannot_hold_are_named_and_leave_no_file(tmp_path, weights, value, kind, words):
    with pytest.raises(UNetFileError, match=words):
        write(tmp_path / "a", {**weights, "out.0.bias": torch.full((32,), value)}, Wanted(GGUF, kind), formats="F32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_quantized_matrix_with_values_past_fp16_is_refused(kind):
    with pytest.raises(UNetFileError, match="cannot hold"):
        plan_of(SVD, Wanted(GGUF, kind)).tensors[5].encode(torch.full((32,), -70000.0))


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(2, 1, 1_000_000))
    with pytest.raises(UNetFileError, match=r"the file takes 0.00\d+ GB, and 0.001 GB are free on its disk"):
        write(tmp_path / "a", weights, Wanted(GGUF, "Q8_0"))
    assert not list(tmp_path.iterdir())


def test_an_error_midway_leaves_no_file_and_another_file_of_the_name_stays(tmp_path, weights):
    (tmp_path / "a").write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        write(tmp_path / "a", weights, Wanted(SAFETENSORS, "fp16"))
    plan, counts = FilePlan(network(weights), Wanted(GGUF, "Q8_0")), []

    def stop(done):
        counts.append(done)
        if len(counts) == 20:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        written_part(tmp_path, plan, lambda tensor: {**weights, **MARKERS}[tensor.name], stop),
    ):
        pass
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"another's"]
    assert counts == sorted(counts) and len(counts) == 20


@pytest.mark.parametrize("wanted", [Wanted(GGUF, "Q8_0"), Wanted(SAFETENSORS, "fp8")])
def test_a_file_that_reads_back_otherwise_than_it_was_written_is_refused(tmp_path, weights, wanted):
    plan = FilePlan(network(weights), wanted)

    def damage(done):
        if done == plan.size:
            [part] = tmp_path.iterdir()
            with part.open("r+b") as file:
                file.seek(len(plan.header) + 100)
                byte = file.read(1)[0]
                file.seek(-1, 1)
                file.write(bytes([byte ^ 1]))

    with (
        pytest.raises(UNetFileError, match=f"^{plan.tensors[0].name} reads back from the disk otherwise"),
        written_part(tmp_path, plan, lambda tensor: {**weights, **MARKERS}[tensor.name], damage),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_name_is_taken_with_the_whole_file_or_not_at_all(tmp_path):
    """Also where the process is killed between two system calls: a part that is gone stands for what it did not get to."""
    part, target = tmp_path / "a.part", tmp_path / "a.gguf"
    with pytest.raises(FileNotFoundError):
        take_name(part, target)
    assert not target.exists()
    part.write_bytes(b"whole")
    take_name(part, target)
    assert target.read_bytes() == b"whole"
    with pytest.raises(FileExistsError):
        take_name(part, target)
