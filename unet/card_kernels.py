"""What runs on a graphics card by kernels of our own: a group norm with the SiLU after it, and GEGLU's product.

PyTorch's group norm on a card gives each group of a video one multiprocessor, and returns images whose channels lie apart; cuDNN
wants them next to one another in half precision, and turns them around before and after each convolution. So where these kernels
run, `UNetModel.forward` arranges its input in that order, all layers keep it, and the tokens of a transformer are the same memory.
Elsewhere (no Triton, another order, while compiling) PyTorch's functions compute the same.
"""

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .hooks import Hooks, may_bypass

Convolved = tuple[torch.Tensor, torch.Tensor | None]  # a convolution [n, c, …], and the bias [c] that is still to be added
EQUAL = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-4}  # largest relative error of a probe
LEAST = 2**17  # values of the first layer's activations for each multiprocessor; with fewer a card waits for launches
WIDER = 8  # GEGLU's input is so many times as wide as the first activations


def runs(x: torch.Tensor) -> bool:
    """Whether kernels of ours may read x."""
    return (
        x.is_cuda and x.dtype in EQUAL and type(x) is torch.Tensor and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled() and _works(x.device, x.dtype)
    )


def arranged(x: torch.Tensor, channels: int) -> torch.Tensor:
    """x [n, c, h, w] with its channels next to one another in memory, where the layers that follow, of `channels`, gain by that."""
    large = runs(x) and x.shape[0] * x.shape[2] * x.shape[3] * channels >= _enough(x.device)
    return x.contiguous(memory_format=torch.channels_last) if large else x


@functools.cache
def _enough(device):
    return LEAST * torch.cuda.get_device_properties(device).multi_processor_count


def _channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def norm_takes(x: torch.Tensor, *layers: nn.Module) -> bool:
    """Whether `group_norm` may stand for a call of a norm, and of the SiLU after it, on x [n, c, (t,) h, w]."""
    kinds = zip(layers, (nn.GroupNorm, nn.SiLU), strict=False)
    own = (isinstance(layer, kind) and may_bypass(layer, type(layer)) for layer, kind in kinds)
    return _channels_last(x) and runs(x) and all(own)


def group_norm(x: torch.Tensor, norm: Any, hooks: Hooks, shift: torch.Tensor | None, silu: bool) -> torch.Tensor:
    """The layer `norm` of x + shift, and its SiLU if asked for; x [n, c, h, w] or [n, c, t, h, w], shift [n, c] or [n*t, c].

    Statistics are pooled from sums in fp32; nothing but the shift is rounded between x and the result.
    """
    from .triton_kernels import group_norm

    weight, bias = hooks.affine(norm, x.dtype, x.device)
    return group_norm(x, weight, bias, norm.num_groups, norm.eps, shift, silu)


def convolved(layers: nn.Sequential, x: torch.Tensor, hooks: Hooks, shift: torch.Tensor | None = None) -> Convolved:
    """layers(x + shift) of group norm, SiLU and what follows, a convolution last; x and shift as in `group_norm`."""
    if _channels_last(x) and norm_takes(x, layers[0], layers[1]) and may_bypass(layers, nn.Sequential):
        norm, _, *others, convolution = layers
        x = group_norm(x, norm, hooks, shift, silu=True)
        for layer in others:
            x = layer(x)
        return hooks.without_bias(convolution, x) if may_bypass(convolution, type(convolution)) else (convolution(x), None)
    if shift is not None:
        x = x + (shift[..., None, None] if x.ndim == 4 else shift.unflatten(0, (x.shape[0], -1)).movedim(1, 2)[..., None, None])
    return layers(x), None


def shifted(layers: nn.Sequential, x: Convolved, shift: torch.Tensor, hooks: Hooks) -> Convolved:
    """`convolved` of what it made before, plus a shift."""
    convolution, bias = x
    shift = shift.to(convolution.dtype)
    held = [convolution]
    del convolution, x  # freed as soon as the sum is there
    return convolved(layers, held.pop(), hooks, shift if bias is None else shift + bias)


def whole(x: Convolved) -> torch.Tensor:
    """What `convolved` made, with its bias."""
    convolution, bias = x
    return convolution if bias is None else convolution + bias.view(-1, *[1] * (convolution.ndim - 2))


def summed(x: torch.Tensor, change: Convolved) -> torch.Tensor:
    """x plus what `convolved` made, of its shape."""
    convolution, bias = change
    if bias is None:
        return x + convolution
    if _channels_last(x) and _channels_last(convolution) and runs(x):
        from .triton_kernels import add

        return add(x, convolution, bias, None)
    return x + whole(change)


def blended(x: torch.Tensor, change: Convolved, mix_factor: torch.Tensor) -> torch.Tensor | None:
    """s * x + (1 - s) * (x + change) with s = sigmoid(mix_factor), of x [n, c, t, h, w]; None where no kernel does it at once."""
    convolution, bias = change
    if bias is None or not (_channels_last(x) and _channels_last(convolution) and runs(x)):
        return None
    from .triton_kernels import add

    return add(x, convolution, bias, mix_factor.to(x.device))


def geglu(x: torch.Tensor) -> torch.Tensor:
    """value * gelu(gate) with the exact GELU (Shazeer 2020), of x [..., 2*c], its halves."""
    if runs(x) and x.numel() >= WIDER * _enough(x.device):
        from .triton_kernels import geglu

        return geglu(x.contiguous())
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


@functools.cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this card runs the kernels, right: tried once a process. Triton is not on each system, and compiles them here."""
    generator = torch.Generator().manual_seed(0)
    def random(*shape):
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32).to(device, dtype)

    x, shift = random(2, 64, 40, 33).contiguous(memory_format=torch.channels_last), random(2, 64)
    weight, bias = shift
    try:
        from . import triton_kernels

        normed = triton_kernels.group_norm(x, weight, bias, 32, 1e-5, shift, True)
        product = triton_kernels.geglu(x.permute(0, 2, 3, 1).flatten())
        total = triton_kernels.add(x, normed, bias, weight[:1].float())
    except torch.cuda.OutOfMemoryError:  # which says nothing of them
        raise
    except Exception as error:  # Triton's kinds: no compiler, no such card, another version
        logging.info("Temporal UNet: PyTorch's kernels compute norms and GEGLU on %s, since Triton's do not run: %s", device, error)
        return False
    wide = x.float()
    value, gate = wide.permute(0, 2, 3, 1).flatten().chunk(2)
    pairs = (
        (normed, F.silu(F.group_norm(wide + shift.float()[..., None, None], 32, weight.float(), bias.float(), 1e-5))),
        (product, value * F.gelu(gate)),
        (total, wide + torch.sigmoid(-weight[0].float()) * (normed.float() + bias.float()[:, None, None])),
    )
    right = all(bool((made - wanted).norm() <= EQUAL[dtype] * wanted.norm()) for made, wanted in pairs)
    if not right:
        logging.warning("Temporal UNet: Triton's kernels are wrong on %s in %s: PyTorch's compute norms and GEGLU.", device, dtype)
    return right
