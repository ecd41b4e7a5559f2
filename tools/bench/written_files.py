"""The kinds of files that `file_kinds.py` tries: each writer is given fp16 weights by their names and makes a file of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from support.families import FULL, PREFIX, in_diffusers_layout
from support.quantized import linear, quantize

Weights = dict[str, torch.Tensor]
Written = tuple[Path, Weights]  # what to load, and the weights that it stands for


@dataclass(frozen=True)
class Kind:
    """A kind of file. `network` is a name of `file_kinds.CONFIGS`, or None where no UNet is in the file that can be run."""

    title: str
    network: str | None
    write: Callable[[Path, Weights], Written]
    full: bool = False  # in the whole size of the model


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor.contiguous() for name, tensor in weights.items()}


def safetensors(folder: Path, weights: Weights, prefix="", dtype=None, name="model.safetensors", beside=None) -> Written:
    kept = {key: tensor if dtype is None or key.endswith("mix_factor") else tensor.to(dtype) for key, tensor in weights.items()}
    if dtype is not None and dtype.itemsize == 1:
        kept = {key: tensor if tensor.ndim > 1 else weights[key] for key, tensor in kept.items()}
    save_file({**prefixed(kept, prefix), **(beside or {})}, folder / name)
    return folder / name, kept


def as_trained(tensors: Weights) -> dict:
    return {"state_dict": tensors}


def pickled(folder: Path, weights: Weights, name: str, wrap=as_trained, prefix=PREFIX, **how) -> Written:
    torch.save(wrap(prefixed(weights, prefix)), folder / name, **how)
    return folder / name, weights


def with_averages(tensors: Weights) -> dict:
    """As training scripts save: what they average and their state beside the weights."""
    averages = {"model_ema." + name.removeprefix("model.").replace(".", ""): value * 0 for name, value in tensors.items()}
    return {"state_dict": tensors | averages, "epoch": 3, "global_step": 1000}


def parts(folder: Path, weights: Weights, stem="model", index=True, missing=False) -> Written:
    names = list(weights)
    halves = [names[:len(names) // 2], names[len(names) // 2:]]
    files = [f"{stem}-{number:05}-of-00002.safetensors" for number in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save_file({name: weights[name].contiguous() for name in half}, folder / file)
    first = folder / files[0]
    if missing:
        (folder / files[1]).unlink()
    if index:
        places = {name: file for file, half in zip(files, halves, strict=True) for name in half}
        first = folder / f"{stem}.safetensors.index.json"
        first.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return first, weights


def diffusers(folder: Path, weights: Weights, config, how="file", heads=None) -> Written:
    """One file, a folder of a whole pipeline, or parts with an index."""
    tensors = in_diffusers_layout(config, weights)
    if how == "parts":
        return parts(folder, tensors, "diffusion_pytorch_model")[0], weights
    unet = folder / "pipeline" / "unet" if how == "folder" else folder
    unet.mkdir(parents=True, exist_ok=True)
    save_file(tensors, unet / "diffusion_pytorch_model.safetensors")
    (unet / "config.json").write_text(json.dumps({"_class_name": "UNet", **(heads or {})}))
    if how == "file":
        return unet / "diffusion_pytorch_model.safetensors", weights
    (folder / "pipeline" / "model_index.json").write_text(json.dumps({"_class_name": "DiffusionPipeline"}))
    return folder / "pipeline", weights


def scaled(folder: Path, weights: Weights, config, spelling: str, dtype=torch.float8_e4m3fn, which=linear, prefix="") -> Written:
    tensors, metadata, plain = quantize(config, spelling, dtype, full_precision=True, which=which)
    if spelling == "metadata" and prefix:
        layers = json.loads(metadata["_quantization_metadata"])["layers"]
        metadata = {"_quantization_metadata": json.dumps({"layers": {prefix + name: row for name, row in layers.items()}})}
    save_file(prefixed(tensors, prefix), folder / "model.safetensors", metadata)
    return folder / "model.safetensors", plain


COMFY_PLAIN = ("time_embed.", "label_emb.", "input_blocks.0.0.weight", "out.2.weight")


def by_gguf_package(folder: Path, weights: Weights, kind="Q8_0", architecture="sd1", prefix="", comfy=True) -> Written:
    """In the dialect of ComfyUI-GGUF's converter, or with natural shapes as stable-diffusion.cpp has them."""
    chosen = gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[chosen][0]
    writer, meant = gguf.GGUFWriter(folder / "model.gguf", architecture), {}
    for key, tensor in weights.items():
        values = tensor.float().numpy()
        shape, format = values.shape, gguf.GGMLQuantizationType.F32 if values.ndim < 2 else gguf.GGMLQuantizationType.F16
        if values.ndim == 5 and not comfy:
            values = values.reshape(-1, *shape[2:])
        if values.ndim > 1 and not key.startswith(COMFY_PLAIN) and (comfy or values.shape[-1] % block == 0):
            format = chosen
        elif values.ndim > 4:
            format = chosen
        if comfy and format == chosen and values.shape[-1] % max(block, 256) and values.size % 256 == 0:
            writer.add_array(f"comfy.gguf.orig_shape.{key}", list(map(int, shape)))
            values = values.reshape(-1, 256)
        data = gguf.quants.quantize(values, format)
        meant[key] = torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(data, format))).reshape(shape)
        writer.add_tensor(prefix + key, data, raw_dtype=format)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf", meant


def renamed(write: Callable[[Path, Weights], Written], name: str, folder: Path, weights: Weights) -> Written:
    path, meant = write(folder, weights)
    return path.rename(folder / name), meant


def other(tensors: Weights, folder: Path, weights: Weights) -> Written:
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors", weights


def unnamed(folder: Path, weights: Weights) -> Written:
    torch.save([torch.zeros(4, 8), torch.zeros(8, 4)], folder / "lora.pt")
    return folder / "lora.pt", weights


def kinds(configs: dict) -> list[Kind]:
    """All kinds; `configs` as `file_kinds.CONFIGS`."""
    sd1, svd, koala = configs["sd1"], configs["svd"], configs["koala_700m"]
    vae = {"first_stage_model.decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)}
    gguf_kinds = ("F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
    fixture = Path(__file__).resolve().parents[2] / "tests" / "support" / "sdcpp" / "sd1_mixed.gguf"
    return [
        Kind("UNet alone, fp16", "sd1", safetensors),
        Kind("UNet alone, fp32", "sd1", partial(safetensors, dtype=torch.float32)),
        Kind("UNet alone, bf16", "sd1", partial(safetensors, dtype=torch.bfloat16)),
        Kind("UNet alone, fp8 e4m3fn", "sd1", partial(safetensors, dtype=torch.float8_e4m3fn)),
        Kind("UNet alone, fp8 e5m2", "sd1", partial(safetensors, dtype=torch.float8_e5m2)),
        Kind("full checkpoint", "sd1", partial(safetensors, prefix=PREFIX, beside=vae)),
        Kind("UNet under diffusion_model.", "sd1", partial(safetensors, prefix="diffusion_model.")),
        Kind("SVD, UNet alone, fp16", "svd", safetensors),
        Kind("SVD, full checkpoint", "svd", partial(safetensors, prefix=PREFIX, beside=vae)),
        Kind("pickled .ckpt", "sd1", partial(pickled, name="model.ckpt")),
        Kind("pickled .ckpt with averages and a trainer's state", "sd1", partial(pickled, name="model.ckpt", wrap=with_averages)),
        Kind("pickled .pt of before PyTorch 1.6", "sd1",
             partial(pickled, name="model.pt", wrap=dict, _use_new_zipfile_serialization=False)),
        Kind("pickled .bin of the UNet alone", "sd1", partial(pickled, name="model.bin", wrap=dict, prefix="")),
        Kind("pickled .pth, SVD", "svd", partial(pickled, name="model.pth")),
        Kind("safetensors named .ckpt", "sd1", partial(renamed, safetensors, "model.ckpt")),
        Kind("pickled, named .safetensors", "sd1", partial(renamed, partial(pickled, name="a.ckpt"), "model.safetensors")),
        Kind("parts with an index", "sd1", parts),
        Kind("parts without an index: the first", "sd1", partial(parts, index=False)),
        Kind("parts, one missing", "sd1", partial(parts, missing=True)),
        Kind("diffusers file", "sd1 of full size", partial(diffusers, config=FULL["sd1"]), full=True),
        Kind("diffusers folder", "sd1 of full size", partial(diffusers, config=FULL["sd1"], how="folder"), full=True),
        Kind("diffusers parts", "sd1 of full size", partial(diffusers, config=FULL["sd1"], how="parts"), full=True),
        Kind("diffusers file, miniature SD 1", "sd1", partial(diffusers, config=sd1)),
        Kind("diffusers file, SVD", "svd", partial(diffusers, config=svd, heads={"num_attention_heads": [5] * 4})),
        Kind("diffusers folder, SVD", "svd", partial(diffusers, config=svd, how="folder", heads={"num_attention_heads": [5] * 4})),
        Kind("diffusers parts, SVD", "svd", partial(diffusers, config=svd, how="parts")),
        Kind("diffusers file, KOALA 700M", "koala_700m", partial(diffusers, config=koala)),
        Kind("scaled fp8, scale_weight", "sd1", partial(scaled, config=sd1, spelling="old")),
        Kind("scaled fp8, comfy_quant", "sd1", partial(scaled, config=sd1, spelling="comfy_quant")),
        Kind("scaled fp8, comfy_quant, full checkpoint", "sd1", partial(scaled, config=sd1, spelling="comfy_quant", prefix=PREFIX)),
        Kind("scaled fp8, _quantization_metadata", "sd1", partial(scaled, config=sd1, spelling="metadata")),
        Kind("scaled fp8, SVD", "svd", partial(scaled, config=svd, spelling="comfy_quant")),
        Kind("int8, comfy_quant", "sd1", partial(scaled, config=sd1, spelling="comfy_quant", dtype=torch.int8)),
        *(Kind(f"GGUF {kind}, ComfyUI-GGUF's layout", "sd1", partial(by_gguf_package, kind=kind)) for kind in gguf_kinds),
        Kind("GGUF Q8_0, stable-diffusion.cpp's layout", "sd1", partial(by_gguf_package, prefix=PREFIX, comfy=False)),
        Kind("GGUF Q8_0, SVD", "svd", partial(by_gguf_package, architecture="svd")),
        Kind("GGUF Q4_0, SVD", "svd", partial(by_gguf_package, kind="Q4_0", architecture="svd")),
        Kind("GGUF named .safetensors", "sd1", partial(renamed, by_gguf_package, "model.safetensors")),
        Kind("GGUF of K types, by stable-diffusion.cpp", None, lambda folder, weights: (fixture, weights)),
        Kind("LoRA", None, partial(other, {"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(4, 4)})),
        Kind("VAE", None, partial(other, {"decoder.conv_in.weight": torch.zeros(4, 4, 3, 3)})),
        Kind("transformer (Flux)", None, partial(other, {"double_blocks.0.img_attn.qkv.weight": torch.zeros(12, 4)})),
        Kind("list of unnamed tensors", None, unnamed),
    ]

