"""Miniatures whose linear weights are quantized with scales, in each spelling that files have."""

import json

import torch
from safetensors.torch import save_file

from support.families import PREFIX, random_weights

FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
SPELLINGS = ("old", "comfy_quant", "metadata", "bare")


def linear(name: str, weight: torch.Tensor) -> bool:
    """Is it a weight of a linear layer? Some large ones are left plain, as in public files."""
    return weight.ndim == 2 and name.endswith(".weight") and not name.startswith(("time_embed.", "label_emb."))


def fp8(weight: torch.Tensor, dtype=torch.float8_e4m3fn):
    """(stored values, scale) of a weight."""
    scale = weight.abs().amax() / torch.finfo(dtype).max
    return (weight / scale).to(dtype), scale


def int8(weight: torch.Tensor):
    """(stored values, scale of each row) of a weight."""
    scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def quantize(config, spelling: str, dtype=torch.float8_e4m3fn, *, full_precision=False, which=linear, seed=0):
    """(tensors of the file without a prefix, its metadata, the network's weights dequantized in fp32).

    `dtype`: fp8 with a scale a weight, or torch.int8 with one a row.
    """
    file, plain, layers = {}, {}, {}
    for name, weight in random_weights(config, seed).items():
        file[name] = plain[name] = weight
        if not which(name, weight):
            continue
        layer = name.removesuffix(".weight")
        stored, scale = int8(weight) if dtype == torch.int8 else fp8(weight, dtype)
        file[name], plain[name] = stored, stored.float() * scale
        layers[layer] = {"format": FP8.get(dtype, "int8_tensorwise")}
        if full_precision:
            layers[layer]["full_precision_matrix_mult"] = True
        file[f"{layer}.{'scale_weight' if spelling == 'old' else 'weight_scale'}"] = scale
        if spelling == "old":
            file[f"{layer}.scale_input"] = torch.tensor(1.0)
        if spelling == "comfy_quant":
            file[f"{layer}.comfy_quant"] = bytes_of(layers[layer])
    if spelling == "old":
        file["scaled_fp8"] = torch.zeros(2 if full_precision else 0, dtype=dtype)
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})} if spelling == "metadata" else {}
    return file, metadata, plain


def bytes_of(options) -> torch.Tensor:
    """A description of a layer as a tensor."""
    text = options if isinstance(options, str) else json.dumps(options)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def write_quantized(path, config, spelling="comfy_quant", dtype=torch.float8_e4m3fn, *, prefix=PREFIX, beside=None, **options):
    """A file with such a UNet under `prefix` and the tensors `beside`; returns what `quantize` does."""
    file, metadata, plain = quantize(config, spelling, dtype, **options)
    heads = {} if config.num_heads else {"temporal_unet.head_channels": str(config.head_channels)}
    if spelling == "metadata":
        layers = json.loads(metadata["_quantization_metadata"])["layers"]
        metadata = {"_quantization_metadata": json.dumps({"layers": {prefix + name: row for name, row in layers.items()}})}
    save_file({**{prefix + name: tensor for name, tensor in file.items()}, **(beside or {})}, path, {**metadata, **heads})
    return file, metadata, plain
