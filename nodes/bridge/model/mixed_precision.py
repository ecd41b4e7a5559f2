"""Quantized weights of safetensors files: kept as they are, in the host's mixed-precision layers, or dequantized while loading.

The host's layers are as they are, but that a weight which is patched stays in floating point until it is unloaded: the host would
quantize it again, and lose most of a small patch.
"""

import json
import logging
from math import prod

import comfy.ops
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from ....unet import Checkpoint, UNetFileError
from ....unet.weights.scales import PLAIN, Quantized, can_dequantize, scale_bytes
from .float_patches import KEPT, PatchedInFloat

KEPT_WEIGHTS = "temporal_unet.kept"  # in the host's `quant_config`: the weights that stay as they are stored
NEWER = "ComfyUI 0.30.0"  # reads every format that we know


def keep_weights(model_config, checkpoint: Checkpoint, chosen: torch.dtype | None) -> frozenset[str]:
    """`kept_weights`, which the host's config for the network says from now on."""
    kept = kept_weights(checkpoint, chosen)
    if kept:
        model_config.quant_config = {"mixed_ops": True, KEPT_WEIGHTS: kept}
    return kept


def kept_in(model_config) -> frozenset[str]:
    """The weights that stay as they are stored, by the host's config for the network."""
    return (model_config.quant_config or {}).get(KEPT_WEIGHTS, frozenset())


def kept_weights(checkpoint: Checkpoint, chosen: torch.dtype | None) -> frozenset[str]:
    """The weights that stay as they are stored, by name; `chosen`: the dtype that the user asks for.

    As the host has it where nothing or fp8 is chosen; any other dtype is given to all weights. Raises UNetFileError where there
    are weights that can neither stay nor be dequantized here.
    """
    for name, weight in checkpoint.quantized.items():
        if not (can_dequantize(weight) or _host_reads(checkpoint, name)):
            raise UNetFileError(f"{checkpoint.path.name}: {_unread(checkpoint, name, weight)}")
    if chosen is not None and chosen.itemsize > 1:
        return frozenset()
    return frozenset(name for name in checkpoint.quantized if _host_reads(checkpoint, name) and _stays(checkpoint, name))


def _host_reads(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the host's linear layers know this weight's format."""
    linear = len(checkpoint.shapes[checkpoint.names[name]]) == 2 and name != "label_emb.weight"  # a table of classes
    linear = linear and name not in checkpoint.reshaped  # the other way round: a convolution of one pixel
    return KEPT and linear and checkpoint.quantized[name].format in QUANT_ALGOS


def _stays(checkpoint: Checkpoint, name: str) -> bool:
    """Not what would compute something else: of fp8 the host takes one scale a weight; smoothed inputs would scale patches too."""
    weight = checkpoint.quantized[name]
    one = prod(checkpoint.shapes[weight.scales["weight_scale"]]) == 1
    return (one or not weight.format.startswith("float8")) and "pre_quant_scale" not in weight.scales


def _unread(checkpoint: Checkpoint, name: str, weight: Quantized) -> str:
    found = f"{name} is quantized as {weight.format}{' with a rotation' if weight.rotated else ''}"
    if len(checkpoint.shapes[checkpoint.names[name]]) != 2:
        return f"{found}, expected that of linear layers alone; others may be scaled fp8 or int8. Get the file in one of these."
    missing = f"This ComfyUI does not read it, {NEWER} does: update it"
    if not KEPT:
        missing = "ComfyUI reads it by the package comfy-kitchen, which is missing: install it"
    return f"{found}. {missing}, or get the model in fp16, scaled fp8 or int8."


def report_dequantized(checkpoint: Checkpoint, kept: frozenset[str], dtype: torch.dtype) -> None:
    """Says in the log which quantized weights are not kept."""
    counts = counted(checkpoint, frozenset(checkpoint.quantized) - kept)
    if counts:
        logging.info("%s: dequantized to %s as it was loaded: %s", checkpoint.path.name, dtype, counts)


def counted(checkpoint: Checkpoint, names: frozenset[str]) -> str:
    """The formats of these weights and how many there are of each, the most first, as a text."""
    formats = [checkpoint.quantized[name].format for name in names]
    return ", ".join(f"{kind} ({formats.count(kind)})" for kind in sorted(set(formats), key=lambda kind: -formats.count(kind)))


def weight_bytes(checkpoint: Checkpoint, kept: frozenset[str], dtype: torch.dtype) -> int:
    """What the network takes in memory with these weights as they are stored and all others as `dtype`."""
    total = kept_scale_bytes(checkpoint, kept)
    for name, on_disk in checkpoint.names.items():
        count = prod(checkpoint.shapes[on_disk])
        total += count // checkpoint.quantized[name].packed if name in kept else count * dtype.itemsize
    return total


def kept_scale_bytes(checkpoint: Checkpoint, kept: frozenset[str]) -> int:
    """What the scales of these weights take, which the host does not count: for nvfp4 an eighth of the weights."""
    return sum(scale_bytes(checkpoint.quantized[name], checkpoint.shapes, checkpoint.dtypes) for name in kept)


def read_weights(
    checkpoint: Checkpoint, kept: frozenset[str], dtype: torch.dtype, mapped: bool, kept_mapped: bool
) -> dict[str, torch.Tensor]:
    """The network's tensors as `dtype`, of the `kept` ones those that the host's layers load, under its names.

    `mapped`, `kept_mapped`: whether all that can, or the kept ones, stay mapped from the file.
    """
    by_host = {name for name, weight in checkpoint.quantized.items() if name not in kept and not can_dequantize(weight)}
    weights = checkpoint.state_dict(dtype, mapped, stored=kept | by_host, stored_mapped=kept_mapped)
    for name in kept | by_host:
        layer, options = name.removesuffix("weight"), json.dumps(checkpoint.quantized[name].options)
        weights[f"{layer}comfy_quant"] = torch.tensor(list(options.encode()), dtype=torch.uint8)
        if checkpoint.quantized[name].format in PLAIN and weights[f"{layer}weight_scale"].numel() > 1:
            weights[f"{layer}weight_scale"] = weights[f"{layer}weight_scale"].reshape(-1, 1)  # one a row
    for name in by_host:
        layer = name.removesuffix("weight")
        own = {kind: weights.pop(f"{layer}{kind}") for kind in ("weight", "comfy_quant", *checkpoint.quantized[name].scales)}
        weights[name] = _by_host(own, checkpoint.shapes[checkpoint.names[name]]).to(dtype)
    return weights


def _by_host(tensors: dict[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """A weight in fp32, as the host's own layer has it that these tensors are for."""
    smoothing = tensors.pop("pre_quant_scale", torch.ones(()))  # of the layer's inputs
    layer = comfy.ops.mixed_precision_ops({}, torch.float32).Linear(shape[1], shape[0], bias=False, device="cpu")
    layer.load_state_dict(tensors)
    return layer.weight.dequantize() * smoothing


def with_mixed_layers(operations):
    """The host's mixed-precision layers, on the meta device until they are loaded, and exact under patches."""

    class Operations(operations):
        class Linear(PatchedInFloat, operations.Linear):
            def __init__(self, *args, device=None, **kwargs):
                super().__init__(*args, **kwargs, device="cpu")  # to which it moves the weight that it loads

            def _load_from_state_dict(self, state_dict, prefix, *args):
                bias = state_dict.get(f"{prefix}bias")
                if bias is not None:
                    state_dict[f"{prefix}bias"] = bias.to(self.factory_kwargs["dtype"])  # in which the layer computes
                super()._load_from_state_dict(state_dict, prefix, *args)

            def forward(self, input, *args, **kwargs):  # noqa: A002  # the name that callers may use
                if isinstance(self.weight, QuantizedTensor):
                    return operations.Linear.forward(self, input, *args, **kwargs)
                comfy.ops.run_every_op()  # ends an interrupted run
                return self.forward_comfy_cast_weights(input, input.dtype)  # a patched weight's inputs are not quantized either

    return Operations
