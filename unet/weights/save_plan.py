"""What a network's file will hold: the format, shape and place of every tensor, known before a value is read.

Two containers are written. **safetensors**: every tensor in one dtype, or fp8 for those of more than one dimension. **GGUF**: one
dtype, or quantized, in two dialects.
- `comfy`, that of the converter of ComfyUI-GGUF (https://github.com/city96/ComfyUI-GGUF): all tensors of more than one dimension
  are quantized but the first and last layer and the embeddings of time and vector. A tensor whose rows are no whole blocks is
  stored as [numbers / 256, 256], with its shape next to it; so are the convolutions over time, which have five dimensions.
- `sdcpp`, that of stable-diffusion.cpp (https://github.com/leejet/stable-diffusion.cpp): matrices are quantized, convolutions
  stay fp16, and those over time have the dimensions that its formats lack folded into the first: [out · in, 3, 1, 1].
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from . import on_disk
from .errors import UNetFileError
from .ggml_quantize import BLOCK, BLOCK_BYTES, QUANTIZERS, quantize
from .ggml_types import PackedTensor

PLAIN = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}  # type as a user names it -> format of a tensor
SAFETENSORS, GGUF = "safetensors", "GGUF"
TYPES = {SAFETENSORS: (*PLAIN, "fp8"), GGUF: (*PLAIN, *QUANTIZERS)}
DIALECTS = ("comfy", "sdcpp")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
HALF = ("F16", "F8_E4M3", "F8_E5M2")  # what tensors of a file hold that fp16 holds, too
ROW = 256  # numbers in a row of a tensor that is stored in another shape
LARGEST = 65504.0  # of fp16, in which blocks keep their scales

OF_ONE_FILE = ("general.", "comfy.gguf.", "_quantization_metadata")  # beginnings of keys that say how a file stores its tensors
COMFY_PLAIN = ("time_embed.", "label_emb.", "input_blocks.0.0.weight", "out.2.weight")
SDCPP_PLAIN = ("time_embed.", "label_emb.")


@dataclass(frozen=True)
class Wanted:
    """What kind of file a user asks for; raises UNetFileError where there is none."""

    container: str  # SAFETENSORS or GGUF
    type: str
    dialect: str = DIALECTS[0]  # of GGUF

    def __post_init__(self):
        if self.type not in TYPES[self.container]:
            also = "The K and IQ formats of GGUF are read, not written. " if "_K" in self.type or self.type.startswith("IQ") else ""
            raise UNetFileError(
                f"{self.container} files are not written as {self.type}. {also}Choose {', '.join(TYPES[self.container][:-1])} or "
                f"{TYPES[self.container][-1]}{_other_container(self)}."
            )


def _other_container(wanted: Wanted) -> str:
    other = GGUF if wanted.container == SAFETENSORS else SAFETENSORS
    return f", or {other} for {wanted.type}" if wanted.type in TYPES[other] else ""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of a file to be."""

    name: str
    shape: tuple[int, ...]  # of its values
    format: str  # as safetensors or GGUF names it
    stored: tuple[int, ...]  # its shape in the file

    @property
    def size(self) -> int:
        """Bytes."""
        numel = math.prod(self.shape)
        return numel // BLOCK * BLOCK_BYTES[self.format] if self.format in QUANTIZERS else numel * DTYPES[self.format].itemsize

    def encode(self, values: torch.Tensor | PackedTensor) -> torch.Tensor:
        """The bytes (uint8) of these values in its format: each rounded once; what is in that format already stays as it is.

        A tensor without numbers is a zero where its file needs one. Raises UNetFileError where a value is not finite, or too
        large for the format.
        """
        if isinstance(values, PackedTensor):
            if values.kind.name == self.format:
                return values.data
            values = values.dequantize()
        if values.element_size() == 1:  # fp8, of which PyTorch finds no least and largest
            values = values.float()
        if not values.numel():
            return torch.zeros(self.size, dtype=torch.uint8)
        self._check(values)
        if self.format in QUANTIZERS:
            return quantize(values, self.format)
        return values.to(DTYPES[self.format]).contiguous().reshape(-1).view(torch.uint8)

    def _check(self, values: torch.Tensor) -> None:
        ends = torch.stack(values.aminmax())
        if not ends.isfinite().all():
            raise UNetFileError(f"{self.name} holds NaN or infinite values, which no model has. Get the model again.")
        fits = ends.abs().max() <= LARGEST if self.format in QUANTIZERS else ends.to(DTYPES[self.format]).float().isfinite().all()
        if not fits:
            raise UNetFileError(
                f"{self.name} has values up to {ends.abs().max().item():.3g}, which {self.format} cannot hold. Choose bf16 or fp32."
            )


def format_of(dtype: torch.dtype) -> str:
    """What a file calls this dtype of weights."""
    return next(name for name, known in on_disk.DTYPES.items() if known == dtype)


@dataclass(frozen=True)
class Network:
    """What is to be saved."""

    shapes: Mapping[str, tuple[int, ...]]  # of the network's tensors, by its own key names
    formats: Mapping[str, str]  # how each is at hand, as safetensors or GGUF names it
    markers: Mapping[str, torch.Tensor]  # tensors next to the network that say how it was trained
    metadata: Mapping[str, str]


def kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """What of a file's metadata is about the model, so that another file with it says so, too."""
    return {key: value for key, value in metadata.items() if not key.startswith(OF_ONE_FILE)}


def plan_tensors(network: Network, wanted: Wanted) -> list[PlannedTensor]:
    """Every tensor of the file, in the order of the network, then the markers in fp32."""
    planned = []
    for name, shape in network.shapes.items():
        chosen = _format(name, shape, network.formats[name], wanted)
        planned.append(PlannedTensor(name, shape, chosen, _stored(shape, chosen, wanted)))
    for name, value in network.markers.items():
        shape = tuple(value.shape)
        if wanted.container == GGUF:  # which has no tensor without dimensions, nor one without numbers
            shape = (max(value.numel(), 1),) if value.ndim < 2 else shape
        planned.append(PlannedTensor(name, shape, "F32", shape))
    return planned


def _format(name: str, shape: tuple[int, ...], at_hand: str, wanted: Wanted) -> str:
    if name.endswith(".mix_factor"):
        return "F32"
    if wanted.type in PLAIN:
        return PLAIN[wanted.type]
    if wanted.type == "fp8":
        return "F8_E4M3" if len(shape) > 1 else "F16"
    if _is_quantized(name, shape, wanted.dialect):
        return wanted.type
    convolution = wanted.dialect == "sdcpp" and len(shape) > 2
    return "F16" if convolution or at_hand in HALF else "F32"


def _is_quantized(name: str, shape: tuple[int, ...], dialect: str) -> bool:
    if dialect == "sdcpp":
        return len(shape) == 2 and shape[1] % BLOCK == 0 and not name.startswith(SDCPP_PLAIN)
    return len(shape) > 1 and (shape[-1] % BLOCK == 0 or math.prod(shape) % ROW == 0) and not name.startswith(COMFY_PLAIN)


def _stored(shape: tuple[int, ...], chosen: str, wanted: Wanted) -> tuple[int, ...]:
    if wanted.container == SAFETENSORS:
        return shape
    if chosen in QUANTIZERS and (len(shape) > 4 or shape[-1] % BLOCK):
        return math.prod(shape) // ROW, ROW
    return (shape[0] * shape[1], *shape[2:]) if len(shape) > 4 else shape


def safetensors_header(planned: list[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """Everything before the values of a safetensors file, which come one after another."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in planned:
        entries[tensor.name] = {
            "dtype": tensor.format, "shape": list(tensor.stored), "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
