"""Which of the host's attention functions a call takes."""

from collections.abc import Callable

import comfy.ldm.modules.attention as host_attention
import torch
from comfy.cli_args import args


def attention_for(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_precision: torch.dtype | None) -> Callable:
    """The host's choice for q, k and v [n, tokens, heads*d], but PyTorch's kernel where the host has none better on a CPU.

    Without a flag the host takes its sub-quadratic attention there. PyTorch's kernel for CPUs makes no whole attention matrix
    either and takes less time. It computes in the inputs' dtype, and makes the matrix where their last dimension is not dense.
    """
    chosen = host_attention.optimized_attention
    if chosen is not host_attention.attention_sub_quad or args.use_quad_cross_attention or q.device.type != "cpu":
        return chosen
    upcast = host_attention.get_attn_precision(attn_precision, q.dtype) not in (None, q.dtype)
    dense = q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    return host_attention.attention_pytorch if dense and not upcast else chosen
