"""Which of the host's attention functions a call takes."""

from collections.abc import Callable

import comfy.ldm.modules.attention as host_attention
import torch
from comfy.cli_args import args

BY_CUDNN = 2**23  # values of q at least: for each new shape cuDNN takes up to half a second to choose how it runs


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


def left_to_pytorch(q: torch.Tensor, heads: int, options: dict) -> bool:
    """Whether PyTorch's own choice of kernel takes less time than the host's for q [n, tokens, heads*d].

    It does on Hopper, where PyTorch takes cuDNN's kernel and the host asks for FlashAttention 2 first. Flags and overrides count.
    """
    return (
        q.is_cuda and q.numel() >= BY_CUDNN and q.shape[0] < 2**15 and q.shape[2] == 64 * heads
        and q.dtype in (torch.float16, torch.bfloat16) and not torch.compiler.is_compiling()
        and host_attention.optimized_attention is host_attention.attention_pytorch and not args.use_pytorch_cross_attention
        and "optimized_attention_override" not in options and torch.cuda.get_device_capability(q.device) == (9, 0)
    )
