"""`dev.py convert`: what it writes of every kind of file, in how much memory, and what is refused and leaves nothing behind."""
import json
import os
import shutil
import sys
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dev
from support.children import run_python
from support.families import TINY, in_diffusers_layout, random_weights, write_unet
from support.quantized import bytes_of
from support.sdcpp_files import FOLDER
from tools.bench.written_files import kinds
from tools.convert import convert, main
from unet import UNetModel, open_checkpoint

CONFIGS = {
    "sd1": TINY["sd1_tiny"], "koala_700m": TINY["koala_700m"],
    "svd": replace(TINY["svd"], channel_mult=(1, 1), num_res_blocks=(1, 1), depth_in=(1, 1), depth_out=(1,) * 4,
                   self_attention=(True, True)),
}
KINDS = {kind.title: kind for kind in kinds(CONFIGS)}


def fp16_weights(name="sd1", seed=0):
    return random_weights(CONFIGS[name], seed, torch.float16)  # mix factors in fp32


def equal(path, weights) -> bool:
    found = open_checkpoint(path).state_dict()
    return found.keys() == weights.keys() and all(torch.equal(found[name].float(), weights[name].float()) for name in weights)


@pytest.mark.parametrize("title", [
    "full checkpoint", "pickled .ckpt with averages and a trainer's state", "parts with an index", "diffusers folder, SVD",
    "scaled fp8, comfy_quant, full checkpoint", "int8, comfy_quant", "GGUF Q4_0, SVD", "GGUF Q8_0, stable-diffusion.cpp's layout",
])
def test_every_kind_of_file_gives_the_values_that_it_stands_for(tmp_path, title):
    kind = KINDS[title]
    path, meant = kind.write(tmp_path, fp16_weights(kind.network))
    convert(path, tmp_path / "out.safetensors", "fp32", "comfy")
    assert equal(tmp_path / "out.safetensors", meant)


def test_k_and_iq_types_of_stable_diffusion_cpp_are_read_as_the_public_package_reads_them(tmp_path):
    path = FOLDER / "sd1_mixed.gguf"
    convert(path, tmp_path / "out.safetensors", "FP32", "comfy")
    found, prefix = load_file(tmp_path / "out.safetensors"), "model.diffusion_model."
    kinds_read = set()
    for tensor in gguf.GGUFReader(path).tensors:
        kinds_read.add(tensor.tensor_type.name)
        expected = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type))).float()
        assert torch.equal(found[tensor.name.removeprefix(prefix)].reshape(-1), expected.reshape(-1))
    assert kinds_read > {"Q4_K", "IQ4_XS", "Q8_0", "F16"}


@pytest.mark.parametrize("dialect", ["comfy", "sdcpp"])
def test_there_and_back_every_byte_and_all_that_is_said_of_the_model_is_the_same(tmp_path, dialect, capsys):
    metadata = {"temporal_unet.num_frames": "9", "title": "漢字", "long": "x" * 2**20 + "y"}
    markers = {"first_stage_model.decoder.conv_in.weight": torch.zeros(4, 4, 3, 3), "edm_vpred.sigma_max": torch.tensor(80.0)}
    weights = write_unet(tmp_path / "a.safetensors", CONFIGS["svd"], dtype=torch.float16, metadata=metadata, beside=markers)
    convert(tmp_path / "a.safetensors", tmp_path / "b.gguf", "fp16", dialect)
    said = capsys.readouterr().out
    assert "Left out: 1 other tensors, such as first_stage_model.decoder.conv_in.weight" in said and "every value is exact" in said
    assert "Left out of the metadata, since too long for GGUF: long." in said
    convert(tmp_path / "b.gguf", tmp_path / "c.safetensors", "fp16", dialect)
    found = load_file(tmp_path / "c.safetensors")
    assert found.pop("edm_vpred.sigma_max") == 80.0
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    kept = open_checkpoint(tmp_path / "c.safetensors").metadata
    assert kept == {"temporal_unet.num_frames": "9", "title": "漢字", "temporal_unet.head_channels": "64"}


def test_quantized_weights_are_copied_between_dialects_and_their_error_is_said(tmp_path, capsys):
    save_file(fp16_weights("svd"), tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.gguf", "q4_0", "comfy")
    assert 0.07 < float(capsys.readouterr().out.split("relative error of a tensor: ")[1].split(",")[0]) < 0.12
    for tensor in gguf.GGUFReader(tmp_path / "b.gguf", "r+").tensors:
        if tensor.tensor_type.name == "Q4_0":
            tensor.data.reshape(-1, 18)[:, 2:] = 0x88 + 0x11 * (np.arange(16) % 3)  # scales that are not those of the largest
    convert(tmp_path / "b.gguf", tmp_path / "c.gguf", "Q4_0", "sdcpp")
    first, second = ({tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / name).tensors} for name in ("b.gguf", "c.gguf"))
    copied = [name for name, tensor in second.items() if tensor.tensor_type.name == "Q4_0"]
    assert len(copied) > 50 and all(first[name].data.tobytes() == second[name].data.tobytes() for name in copied)


def test_what_a_diffusers_folder_says_besides_the_weights_is_kept(tmp_path):
    config = replace(TINY["sd2"], model_channels=32, head_channels=16)
    unet, scheduler = tmp_path / "model" / "unet", tmp_path / "model" / "scheduler"
    for folder in (unet, scheduler):
        folder.mkdir(parents=True)
    save_file(in_diffusers_layout(config, random_weights(config)), unet / "diffusion_pytorch_model.safetensors")
    described = {
        "_class_name": "UNet2DConditionModel", "block_out_channels": config.level_channels, "in_channels": 4,
        "cross_attention_dim": 1024, "attention_head_dim": [config.heads(width)[0] for width in config.level_channels],
    }
    (unet / "config.json").write_text(json.dumps(described))
    trained = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (scheduler / "scheduler_config.json").write_text(json.dumps(trained))
    convert(tmp_path / "model", tmp_path / "a.safetensors", "fp16", "comfy")
    written = open_checkpoint(tmp_path / "a.safetensors")
    assert written.config == config and {"v_pred", "ztsnr"} <= written.shapes.keys()
    (unet / "config.json").write_text(json.dumps({**described, "attention_head_dim": 2}))
    assert "it has 2 attention heads in all levels, where " in refused(tmp_path / "model", tmp_path / "b.gguf", "Q8_0")


def refused(source, target, kind) -> str:
    """What is said when a file is not converted; nothing is left in the folder of the target."""
    before = set(target.parent.iterdir()) if target.parent.is_dir() else set()
    with pytest.raises(SystemExit) as stopped:
        main([str(source), str(target), kind, "comfy"])
    assert not target.parent.is_dir() or set(target.parent.iterdir()) == before
    return str(stopped.value)


def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    path, weights = tmp_path / "a.safetensors", fp16_weights()
    save_file(weights, path)
    rows = [
        ("b.gguf", "q4_K", "GGUF files are not written as Q4_K. The K and IQ formats of GGUF are read, not written. Choose fp16"),
        ("b.gguf", "iq4_xs", "The K and IQ formats of GGUF are read, not written"),
        ("b.safetensors", "Q8_0", "or GGUF for Q8_0"), ("b.gguf", "fp8", "or safetensors for fp8"),
        ("b.ckpt", "fp16", "b.ckpt ends in .ckpt, expected .safetensors or .gguf"),
        ("a.safetensors", "fp16", "a.safetensors is there already, and nothing is overwritten. Name another file."),
        ("none/b.gguf", "Q8_0", "none/b.gguf cannot be written (No such file or directory)"),
    ]
    assert [(name, kind, refused(path, tmp_path / name, kind)) for name, kind, words in rows
            if words not in refused(path, tmp_path / name, kind)] == []
    assert "none.safetensors: no such file" in refused(tmp_path / "none.safetensors", tmp_path / "b.gguf", "Q8_0")
    save_file({**weights, "out.0.bias": weights["out.0.bias"] * float("inf")}, tmp_path / "c.safetensors")
    assert "out.0.bias holds NaN or infinite values" in refused(tmp_path / "c.safetensors", tmp_path / "b.gguf", "Q8_0")
    layer = "input_blocks.3.1.transformer_blocks.0.attn1.to_q"
    rows, columns = weights[f"{layer}.weight"].shape
    scaled = {
        f"{layer}.weight": torch.zeros(rows, columns // 2, dtype=torch.uint8), f"{layer}.weight_scale_2": torch.ones(()),
        f"{layer}.weight_scale": torch.ones(128, 4).to(torch.float8_e4m3fn), f"{layer}.comfy_quant": bytes_of({"format": "nvfp4"}),
    }
    save_file({**weights, **scaled}, tmp_path / "d.safetensors")
    assert "quantized as nvfp4, which only ComfyUI's own layers dequantize" in refused(
        tmp_path / "d.safetensors", tmp_path / "b.gguf", "Q8_0")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(2, 1, 1_000_000))
    assert "the file takes 0.00" in refused(path, tmp_path / "b.gguf", "Q8_0")
    assert "GB, and 0.001 GB are free on its disk" in refused(path, tmp_path / "b.gguf", "Q8_0")


MEASURE = """
import sys
from pathlib import Path
from support.memory_status import Peak, status
from tools.convert import convert
small, large, folder = map(Path, sys.argv[1:])
for index, (path, kind) in enumerate([(small, "Q4_0"), (large, "Q4_0"), (folder / "1.gguf", "fp32")]):
    before, watch = status("RssAnon"), Peak()
    convert(path, folder / f"{index}.{'gguf' if kind == 'Q4_0' else 'safetensors'}", kind, "comfy")
    print("MiB", watch.stop() - before)
"""


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the memory of a process")
def test_memory_holds_about_a_tensor_of_a_large_file(tmp_path):
    """The largest is 4.7 MB in fp32, all are 188. The first file takes what one network or another takes in Python."""
    empty = UNetModel(CONFIGS["koala_700m"], device="meta").state_dict()
    save_file({name: torch.ones(value.shape) for name, value in empty.items()}, tmp_path / "large.safetensors")
    save_file(fp16_weights(), tmp_path / "small.safetensors")
    assert (tmp_path / "large.safetensors").stat().st_size > 180e6
    said = run_python("-c", MEASURE, tmp_path / "small.safetensors", tmp_path / "large.safetensors", tmp_path).stdout
    _, packing, unpacking = (float(line.split()[1]) for line in said.splitlines() if line.startswith("MiB"))
    assert packing < 20 and unpacking < 20, said


@pytest.mark.slow
@pytest.mark.one_host
def test_dev_py_converts_by_the_python_of_comfyui_from_any_folder(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save_file(fp16_weights(), "a.safetensors")
    host = ["--comfyui", os.environ["TEMPORAL_UNET_HOST"], "--python", sys.executable]
    args = dev.parse_arguments(["convert", "a.safetensors", "b.gguf", "--type", "Q8_0", *host])
    with pytest.raises(SystemExit) as ended:
        args.function(args)
    assert ended.value.code == 0 and (tmp_path / "b.gguf").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size
    assert "a.safetensors: SD 1 tiny" in capfd.readouterr().out
