"""GGUF files of small networks in both published dialects, written and dequantized by the `gguf` package: the oracle."""

import re

import gguf
import numpy as np
import torch

from support.families import PREFIX, random_weights

# What each converter keeps out of quantizing besides biases: ComfyUI-GGUF's lcpp.patch, stable-diffusion.cpp's model_loader.cpp.
COMFY_KEEPS = re.compile(r"time_embed\.|label_emb\.|^input_blocks\.0\.0\.weight|^out\.2\.weight")
SDCPP_KEEPS = re.compile(r"bias$|time_embed\.|label_emb\.|embedding|mix_factor")


def write_gguf(path, config, kind="Q8_0", dialect="comfy", seed=0, beside=None) -> dict[str, torch.Tensor]:
    """A network with random weights; returns the values in the file, in fp32.

    `beside`: other tensors of a full checkpoint, which are quantized by the same rules in the dialect "sdcpp"; their values are
    returned, too.
    """
    writer = gguf.GGUFWriter(path, "sd1") if dialect == "comfy" else _without_metadata(path)
    if config.model_channels < 64 and config.head_channels:  # a miniature's own head width
        writer.add_string("temporal_unet.head_channels", str(config.head_channels))
    values = {}
    quantized = gguf.GGMLQuantizationType[kind]
    for name, weight in random_weights(config, seed).items():
        args = (writer, name, weight) if dialect == "comfy" else (writer, PREFIX + name, weight)
        values[name] = (_comfy if dialect == "comfy" else _sdcpp)(*args, quantized)
    for name, tensor in (beside or {}).items():
        if dialect == "comfy":
            writer.add_tensor(name, tensor.numpy())
        else:
            values[name] = _sdcpp(writer, name, tensor.float(), quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _without_metadata(path):
    writer = gguf.GGUFWriter(path, "sd1")
    writer.kv_data[0].clear()
    return writer


def _comfy(writer, name, weight, kind):
    if weight.ndim == 1 or COMFY_KEEPS.search(name):
        writer.add_tensor(name, weight.numpy())
        return weight
    rows = weight
    if weight.shape[-1] % 256 and weight.numel() % 256 == 0:
        rows = weight.reshape(-1, 256)
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(weight.shape))
    return _quantized(writer, name, rows, kind).reshape(weight.shape)


def _sdcpp(writer, name, weight, kind):
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if not SDCPP_KEEPS.search(name) and weight.ndim <= 2 and weight.shape[-1] % block == 0:
        return _quantized(writer, name, weight, kind)
    stored = weight if weight.ndim == 1 else weight.half()
    folded = stored.flatten(0, 1) if stored.ndim == 5 else stored
    writer.add_tensor(name, folded.numpy())
    return stored.float()


def _quantized(writer, name, weight, kind):
    data = gguf.quantize(weight.numpy(), kind)
    writer.add_tensor(name, data, raw_dtype=kind)
    return torch.from_numpy(np.ascontiguousarray(gguf.dequantize(data, kind))).reshape(weight.shape)
