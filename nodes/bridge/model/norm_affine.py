"""The weight and bias that a group norm of the host would use, for norms that run in chunks."""

import comfy.ops
import torch


def cast_affine(norm: torch.nn.GroupNorm, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias [c] of a layer of `comfy.ops`: patched, in `dtype` and on `device`, wherever they lie.

    Both are copies, since the host uses the memory of what it casts again.
    """
    weight, bias, stream = comfy.ops.cast_bias_weight(norm, dtype=dtype, bias_dtype=dtype, device=device, offloadable=True)
    copies = weight.clone(), bias.clone()
    comfy.ops.uncast_bias_weight(norm, weight, bias, stream)
    return copies
