"""What `dev.py run` takes and says before anything starts."""
import json
import shutil
import struct
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import dev
from support.families import TINY, write_unet
from tools import animate
from tools.user_files import svd_fault, write_photo

MINIATURE = dev.ROOT / "tools" / "miniature" / "weights" / "miniature_svd.safetensors"


@pytest.mark.parametrize("option, value, expected", [
    ("frames", "0", "a whole number from 1 to 4096"), ("steps", "few", "a whole number from 1"),
    ("width", "17", "a multiple of 8 from 16"), ("height", "-8", "a multiple of 8 from 16"),
    ("max-cfg", "nan", "a number from 0 to 100"), ("seed", "-1", "a whole number from 0"),
    ("fps", "7.5", "a whole number from 1"),
    ("image", "missing.png", "missing.png is not a file: name one that exists"),
    ("svd", ".", ". is not a file: name one that exists"), ("out", __file__, "test_run.py is a file: name a folder"),
])
def test_what_no_video_can_have_is_refused_with_what_is_expected(capsys, option, value, expected):
    with pytest.raises(SystemExit):
        dev.parse_arguments(["run", f"--{option}={value}"])
    said = capsys.readouterr().err
    assert f"argument --{option}: " in said and expected in said


def test_a_folder_that_cannot_be_made_for_the_video_is_named_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(dev.DevError, match=r"--out .*inside: no file can be written there \(Not a directory\): name another"):
        dev.command_run(dev.parse_arguments(["run", "--out", str(tmp_path / "file" / "inside"), "--comfyui", "missing"]))
    animate.make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_the_help_names_the_default_of_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        dev.parse_arguments(["run", "--help"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("--")]
    assert len(lines) == 5 + len(animate.OPTIONS)
    assert [line for line in lines if "default: " not in line and "comfyui" not in line.lower()] == []
    assert any("(default: 14, miniature: 8)" in line for line in lines if "--frames" in line)


def test_options_reach_every_input_that_they_are_for():
    prompt = animate.prepared_prompt(True, {"seed": 5, "frames": 3, "steps": None})
    inputs = {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert inputs[animate.LOADER]["ckpt_name"] == animate.CHECKPOINT
    assert inputs[animate.CONDITIONING]["seed"] == inputs[animate.SAMPLER]["seed"] == 5
    assert inputs[animate.CONDITIONING]["video_frames"] == 3
    assert inputs[animate.SAMPLER]["steps"] == 14


def test_a_photo_is_written_upright_whatever_its_ending(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # orientation: to be turned clockwise
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "mine.dat", "JPEG", exif=exif)
    assert write_photo(tmp_path / "mine.dat", tmp_path / "input" / "photo.png") is None
    with Image.open(tmp_path / "input" / "photo.png") as photo:
        assert photo.format == "PNG" and photo.size == (20, 30)


def test_a_gray_photo_of_16_bits_keeps_its_shades(tmp_path):
    shades = np.linspace(0, 65535, 64).reshape(8, 8)
    Image.fromarray(shades.astype(np.uint16)).save(tmp_path / "gray.png")
    assert write_photo(tmp_path / "gray.png", tmp_path / "photo.png") is None
    with Image.open(tmp_path / "photo.png") as photo:
        assert photo.mode == "RGB" and np.abs(np.asarray(photo)[..., 0] - shades / 257).max() <= 1


def test_a_photo_that_is_no_image_is_named(tmp_path):
    (tmp_path / "mine.png").write_text("no image")
    fault = write_photo(tmp_path / "mine.png", tmp_path / "photo.png")
    assert "mine.png: it is no image that can be read" in fault and "expected a PNG, JPEG or WebP file" in fault


def test_a_checkpoint_is_laid_out_under_a_name_that_the_host_lists_whatever_its_ending(tmp_path, monkeypatch):
    monkeypatch.setattr(animate.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, ""))
    svd = tmp_path / "svd.safetensors.download"
    svd.write_bytes(b"weights")
    animate.lay_out(dev.Host("host", tmp_path, tmp_path), tmp_path / "base", tmp_path / "photo", svd)
    [laid_out] = (tmp_path / "base" / "models" / "checkpoints").iterdir()
    assert laid_out.read_bytes() == b"weights"
    assert laid_out.name == animate.node_of(animate.prepared_prompt(True, {}), animate.LOADER)["inputs"]["ckpt_name"]
    assert laid_out.suffix == ".safetensors"


def write_lora(path):
    save_file({f"lora_unet_input_blocks_1_1_proj_in.lora_{end}.weight": torch.zeros(4, 4) for end in ("up", "down")}, path)


def write_header(path):
    """A file that is cut off after its header."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize("write, found", [
    (lambda path: path.write_text("SVD is a model.\n" * 99), "it is not a safetensors file"),
    (write_lora, "it holds a LoRA"),
    (write_header, "it is cut off"),
    (lambda path: shutil.copy(MINIATURE, path), "it holds no image encoder"),
    (lambda path: write_unet(path, TINY["sd1"]), "it holds Stable Diffusion 1"),
], ids=["text", "LoRA", "cut off", "no image encoder", "other family"])
def test_a_file_that_is_no_checkpoint_of_svd_is_named_with_what_it_is(tmp_path, write, found):
    path = tmp_path / "mine.safetensors"
    write(path)
    fault = svd_fault(path)
    assert fault.startswith("--svd ") and "mine.safetensors" in fault
    assert found in fault and "svd.safetensors or svd_xt.safetensors" in fault
