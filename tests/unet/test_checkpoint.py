"""Reading a UNet out of a safetensors file, and what is reported of files that cannot be read."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support import small
from support.families import PREFIX, TINY, inputs, random_weights, write_unet
from unet import UNetFileError, UNetModel, find_controlnet, load_unet, open_checkpoint
from unet.weights.checkpoint import expected_shapes

ROOT = Path(__file__).resolve().parents[2]
CONFIG = small.SVD
METADATA = {"temporal_unet.head_channels": str(CONFIG.head_channels)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def write(path, weights, metadata=METADATA):
    save_file({PREFIX + name: value for name, value in weights.items()}, path, metadata)


def error_of(path, open=open_checkpoint):
    """The message about a file that cannot be used; it must name the file."""
    with pytest.raises(UNetFileError) as error:
        open(path)
    assert path.name in str(error.value)
    return str(error.value)


def test_a_loaded_unet_equals_its_weights(path):
    weights = write_unet(path, CONFIG, metadata=METADATA)
    call = inputs(CONFIG, frames=3, batch=2)
    model = load_unet(path)
    assert model.config == CONFIG and model.dtype == torch.float32 and not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(**call, num_frames=3), small.build(CONFIG)(**call, num_frames=3))


def test_a_file_that_is_opened_again_needs_no_network_to_compare_it_with(path):
    write_unet(path, CONFIG, metadata=METADATA)
    open_checkpoint(path)
    before = expected_shapes.cache_info()
    open_checkpoint(path)
    assert expected_shapes.cache_info().misses == before.misses and expected_shapes.cache_info().hits == before.hits + 1
    with pytest.raises(TypeError):
        expected_shapes(CONFIG)["more"] = (1,)  # what is kept cannot be written to


def test_a_checkpoint_says_what_it_holds(path):
    write_unet(path, CONFIG, metadata=METADATA)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.family.name, checkpoint.config, checkpoint.metadata) == ("svd", CONFIG, METADATA)
    assert checkpoint.parameters == sum(value.numel() for value in random_weights(CONFIG).values())


def test_only_the_unets_tensors_are_read_out_of_a_full_checkpoint(path):
    others = {"first_stage_model.decoder.conv_in.weight": torch.ones(4), "conditioner.embedders.0": torch.ones(4)}
    weights = write_unet(path, CONFIG, beside=others, metadata=METADATA)
    checkpoint = open_checkpoint(path)
    asked = []

    class File:  # what is asked of the open file
        def get_tensor(self, name, file=checkpoint.file):
            asked.append(name)
            return file.get_tensor(name)

    checkpoint.file = File()
    assert checkpoint.state_dict().keys() == weights.keys()
    assert sorted(asked) == sorted(PREFIX + name for name in weights)
    assert checkpoint.unexpected == [] and set(others) < set(checkpoint.shapes)


def test_tensors_under_the_prefix_that_the_unet_does_not_use_are_listed(path):
    extra = {PREFIX + name: torch.ones(1) for name in ("zzz.bias", "input_blocks.1.0.extra")}
    weights = write_unet(path, CONFIG, beside=extra, metadata=METADATA)
    checkpoint = open_checkpoint(path)
    assert checkpoint.unexpected == ["input_blocks.1.0.extra", "zzz.bias"]
    assert checkpoint.state_dict().keys() == weights.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_the_dtype_is_that_of_most_parameters(dtype, path):
    """Though the first tensors, and most of them, are in fp64."""
    few = {name for name, value in random_weights(CONFIG).items() if value.ndim == 1 or name.startswith("time_embed.")}
    write(path, {n: value.to(torch.float64 if n in few else dtype) for n, value in random_weights(CONFIG).items()})
    assert open_checkpoint(path).dtype() == dtype


def test_a_half_precision_file_stays_half_precision(path):
    write_unet(path, CONFIG, dtype=torch.float16, metadata=METADATA)
    model = load_unet(path)
    assert model.dtype == torch.float16
    assert model.input_blocks[0][0].weight.dtype == torch.float16


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_mix_factors_are_fp32_whatever_the_file_and_the_model_are(dtype, path):
    write(path, {name: value.half() for name, value in random_weights(CONFIG).items()})
    model = load_unet(path, dtype=dtype)
    mix_factors = {value.dtype for name, value in model.state_dict().items() if name.endswith("mix_factor")}
    others = {value.dtype for name, value in model.state_dict().items() if not name.endswith("mix_factor")}
    assert mix_factors == {torch.float32} and others == {dtype or torch.float16}


def test_a_file_is_converted_to_the_dtype_asked_for(path):
    weights = write_unet(path, CONFIG, metadata=METADATA)
    state = load_unet(path, dtype=torch.bfloat16).state_dict()
    assert torch.equal(state["out.2.weight"], weights["out.2.weight"].bfloat16())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the mappings of the process from /proc")
def test_tensors_stay_mapped_from_the_file_where_that_is_asked_for(path):
    write_unet(path, CONFIG, metadata=METADATA)
    checkpoint = open_checkpoint(path)
    weights = checkpoint.state_dict(torch.float32, mapped=True)
    mapped = [tuple(int(end, 16) for end in line.split()[0].split("-"))
              for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    def is_mapped(value):
        return any(start <= value.data_ptr() < end for start, end in mapped)

    assert [name for name, value in weights.items() if not is_mapped(value)] == []
    assert [name for name, value in checkpoint.state_dict(torch.float32).items() if is_mapped(value)] == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
@pytest.mark.slow
def test_loading_makes_one_copy_in_memory_and_mapping_none(path):
    empty = UNetModel(TINY["svd"], device="meta").state_dict()
    write(path, {name: torch.zeros(tensor.shape) for name, tensor in empty.items()}, metadata=None)
    assert path.stat().st_size > 200e6
    script = """
import re, sys
from pathlib import Path
import torch
from unet import load_unet, open_checkpoint
anonymous = lambda: int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before = anonymous()
weights = open_checkpoint(sys.argv[1]).state_dict(torch.float32, mapped=True)
assert sum(weight.sum() for weight in weights.values()) == 0  # reads every page
print(anonymous() - before)
model = load_unet(sys.argv[1])
print(anonymous() - before)
"""
    command = [sys.executable, "-c", script, str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    mapped, loaded = map(float, run.stdout.split())
    assert mapped < 60 and loaded < path.stat().st_size / 1e6 + 60, f"{run.stdout} MB for {path.stat().st_size / 1e6:.0f} MB"


def test_a_missing_file_is_an_error_that_names_it(path):
    assert "no such file" in error_of(path)


@pytest.mark.parametrize("open", [open_checkpoint, load_unet])
@pytest.mark.parametrize("kept", [0.99, 0.5], ids=["last bytes", "half"])
def test_a_file_cut_in_its_data_is_an_error_that_says_so(kept, open, path):
    write_unet(path, CONFIG, metadata=METADATA)
    size = int(path.stat().st_size * kept)
    os.truncate(path, size)
    message = error_of(path, open)
    assert "cut off" in message and f"{size:,} bytes" in message and "Download it again" in message


@pytest.mark.parametrize("size", [9, 1000])
def test_a_file_cut_in_its_header_is_an_error_that_says_so(size, path):
    write_unet(path, CONFIG, metadata=METADATA)
    os.truncate(path, size)
    message = error_of(path)
    assert "cut off" in message and "Download it again" in message


@pytest.mark.parametrize("length", [0x78, 0x80, 0x280, 0x4B50])
def test_a_cut_file_is_called_cut_whatever_the_length_of_its_header(length, path):
    """The file starts with that length, which may look like the first bytes of a pickle (80 02) or a zip file (PK)."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode().ljust(length)
    path.write_bytes(struct.pack("<Q", length) + header + bytes(8))
    assert "cut off" in error_of(path)


@pytest.mark.parametrize(
    "content, kind, advice",
    [
        (b"<!DOCTYPE html>\n<html><body>Not found</body></html>" * 9, "web page", "download"),
        (b"\n <html lang=en>" + b" " * 99, "web page", "download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 9559625980\n",
         "Git LFS pointer", "git lfs pull"),
        (b"PK\x03\x04" + bytes(99), "PyTorch file", "download"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(99), "PyTorch file", "download"),
        (b"", "empty", "download"),
        (bytes(range(7, 256)), "not a safetensors file", "download"),
        (b"abc", "not a safetensors file", "download"),
        (struct.pack("<Q", 16) + b"not a JSON text!" + bytes(99), "not a safetensors file", "download"),
    ],
    ids=["web page", "web page after blanks", "LFS pointer", "zip", "pickle", "empty", "random bytes",
         "three bytes", "no JSON"],
)
def test_a_file_of_another_format_is_an_error_that_says_what_it_is_and_what_to_do(content, kind, advice, path):
    path.write_bytes(content)
    message = error_of(path)
    assert kind in message and advice in message.lower(), message


@pytest.mark.parametrize("content, words", [
    (b"", "a.pth: it is empty"),
    (b"<html>", "a.pth: it is a web page.* Download the .pth file"),
    (b"version https://git-lfs", "git lfs pull"),
    (
        b"hello",
        "a.pth cannot be read as a PyTorch file .it begins as another kind of file.. Download it again, or take the .safetensors",
    ),
    (b"PK\x03\x04" + bytes(99), "a.pth cannot be read as a PyTorch file .it is cut off.. Download it again"),
])
def test_a_pickled_controlnet_is_inspected_before_it_is_left_to_the_host(content, words, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UNetFileError, match=words):
        find_controlnet(tmp_path / "a.pth")


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_of_no_network_of_ours_is_left_to_the_host(new, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    assert find_controlnet(tmp_path / "a.pth") is None


@pytest.mark.parametrize("ending", [".safetensors", ".SFT"])
def test_a_damaged_controlnet_is_an_error_under_each_ending_of_safetensors(ending, tmp_path):
    (tmp_path / f"a{ending}").write_bytes(b"abc")
    with pytest.raises(UNetFileError, match="it is not a safetensors file"):
        find_controlnet(tmp_path / f"a{ending}")


def test_a_file_without_a_unet_is_an_error_that_names_the_file(path):
    save_file({"encoder.conv_in.weight": torch.ones(1)}, path)
    assert "a VAE" in error_of(path)


def test_a_missing_tensor_is_named(path):
    weights = random_weights(CONFIG)
    del weights["middle_block.1.proj_in.bias"]
    write(path, weights)
    message = error_of(path)
    assert f"of the {len(weights) + 1} tensors" in message and "1 missing (middle_block.1.proj_in.bias)" in message


def test_a_misshaped_tensor_is_named_with_both_shapes(path):
    write(path, {**random_weights(CONFIG), "middle_block.1.proj_in.bias": torch.ones(7)})
    assert "1 of another shape (middle_block.1.proj_in.bias is [7] instead of [64])" in error_of(path)


def test_many_faults_are_counted_and_the_first_three_named(path):
    weights = random_weights(CONFIG)
    gone = [name for name in weights if name.startswith("time_embed.") or name == "out.0.bias"]
    bent = [name for name in weights if name.startswith("label_emb.") and name.endswith("bias")]
    for name in gone:
        del weights[name]
    for name in bent:
        weights[name] = torch.ones(3)
    write(path, weights)
    message = error_of(path)
    assert f"5 missing ({', '.join(gone[:3])}, …)" in message
    first, second = (re.escape(name) for name in bent)
    assert re.search(rf"2 of another shape \({first} is \[3\].*{second} is \[3\][^…]*\)", message)


def test_a_unet_without_the_first_layer_of_its_middle_block_is_an_error(path):
    write(path, {n: value for n, value in random_weights(CONFIG).items() if not n.startswith("middle_block.0.")})
    assert "middle_block.0" in error_of(path)


@pytest.mark.parametrize("name", ["input_blocks.0.0.weight", "label_emb.0.0.weight"])
def test_a_tensor_of_too_few_dimensions_is_an_error_that_names_the_file_and_the_tensor(name, path):
    write(path, {**random_weights(CONFIG), name: torch.ones(7)})
    assert name in error_of(path)
