"""Which of the host's attention functions a call takes."""

from collections.abc import Callable

import comfy.ldm.modules.attention as host_attention
import torch
import torch.nn.functional as F
from comfy.cli_args import args

BY_CUDNN = 2**23  # values of q at least: for each new shape cuDNN takes up to half a second to choose how it runs


def attention_for(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, attn_precision: torch.dtype | None, options: dict
) -> Callable:
    """The host's choice for q, k and v [n, tokens, heads*d], but another kernel of PyTorch's where that takes less time.

    On a CPU without a flag the host takes its sub-quadratic attention. PyTorch's kernel for CPUs makes no whole attention matrix
    either and takes less time. It computes in the inputs' dtype, and makes the matrix where their last dimension is not dense.
    """
    chosen = host_attention.optimized_attention
    if q.is_cuda:
        own = chosen is host_attention.attention_pytorch and "optimized_attention_override" not in options and _by_cudnn(q, heads)
        return attention_by_pytorchs_choice if own else chosen
    if chosen is not host_attention.attention_sub_quad or args.use_quad_cross_attention or q.device.type != "cpu":
        return chosen
    upcast = host_attention.get_attn_precision(attn_precision, q.dtype) not in (None, q.dtype)
    dense = q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    return host_attention.attention_pytorch if dense and not upcast else chosen


def _by_cudnn(q, heads):
    """Whether cuDNN's kernel is the faster one: on Hopper, where PyTorch takes it by itself and the host asks for another first."""
    return (
        not torch.compiler.is_compiling() and q.numel() >= BY_CUDNN and q.shape[0] < 2**15 and q.shape[2] == 64 * heads
        and q.dtype in (torch.float16, torch.bfloat16)
        and not args.use_pytorch_cross_attention and torch.cuda.get_device_capability(q.device) == (9, 0)
    )


def attention_by_pytorchs_choice(q, k, v, heads, **_):
    """softmax(q k^T / sqrt(d)) v for q [n, tokens, heads*d], k and v [n, keys, heads*d]; returns q's shape."""
    q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
