"""Tensors as NumPy arrays and plain values, which pass between processes that have this package under different names."""

import numpy as np
import torch

from .weights.ggml_types import PackedTensor, ggml_type, is_quantized

Array = tuple[np.ndarray, str, tuple[int, ...]]  # the numbers, their dtype in PyTorch or number format in GGUF files, the shape
HELD_AS = {1: torch.uint8, 2: torch.int16}  # by the bytes of a number: what holds dtypes that NumPy lacks
LACKING = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def to_array(tensor: torch.Tensor | PackedTensor) -> Array:
    """A tensor, or the blocks of a quantized one, as NumPy's numbers; on the CPU these are the tensor's own memory."""
    if isinstance(tensor, PackedTensor):
        return tensor.data.cpu().numpy(), tensor.kind.name, tuple(tensor.shape)
    held = tensor.detach().contiguous().cpu()
    if tensor.dtype in LACKING:
        held = held.view(HELD_AS[tensor.dtype.itemsize])
    return held.numpy(), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def to_tensor(array: Array, device: torch.device | str = "cpu") -> torch.Tensor | PackedTensor:
    """What `to_array` was given, in memory of its own: arrays that came from another process may not be written to."""
    numbers, kind, shape = array
    held = torch.from_numpy(np.array(numbers)).to(device)
    if is_quantized(kind):
        return PackedTensor(held, ggml_type(kind), tuple(shape))
    dtype = getattr(torch, kind)
    return (held.view(dtype) if dtype in LACKING else held).reshape(shape)
