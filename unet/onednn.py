"""Linear layers by oneDNN, with a GELU, a product or a sum fused into them, where that is faster than PyTorch's own.

On a CPU PyTorch's fp32 linear calls MKL, which on AMD leaves part of the processor unused; oneDNN, which the convolutions
run by, does not. The operator is PyTorch's own but private, so each form of it is probed once, for its result and its time.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .probes import Probe

ROWS = 256  # below, a call costs more than it saves
SLOWER = 1.1  # times PyTorch's time that a form may take: where both are as fast, noise must not change what is chosen
PROBED = (512, 320, 640)  # rows, channels in, channels out: about a millisecond


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b, of x [..., k] and W [n, k], as all forms below."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The exact (erf) GELU of x W^T + b."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")


def times(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """(x W^T + b) * other."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "mul")


def plus(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """x W^T + b + other."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")


def _probe(form, plain, more=()):
    rows, n_in, n_out = PROBED
    return Probe(form, plain, [(rows, n_in), (n_out, n_in), (n_out,), *more], SLOWER)


PROBES: dict[Callable, Probe] = {  # by what PyTorch's own kernels make of the same
    linear: _probe(linear, F.linear),
    gelu: _probe(gelu, lambda x, weight, bias: F.gelu(F.linear(x, weight, bias))),
    times: _probe(times, lambda x, weight, bias, other: F.linear(x, weight, bias) * other, [PROBED[::2]]),
    plus: _probe(plus, lambda x, weight, bias, other: F.linear(x, weight, bias) + other, [PROBED[::2]]),
}


def takes(form: Callable, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `form` (a function of this module) may and should compute this linear layer of x."""
    return are_plain(x, weight, bias) and x.numel() >= ROWS * x.shape[-1] and pays(form)


def are_plain(*tensors: torch.Tensor | None) -> bool:
    """Whether these are fp32 on a CPU, and no compiler, gradient, autocast or switch asks for the usual kernels."""
    if torch.compiler.is_compiling():  # the compiler fuses on its own, and cannot look into a probe
        return False
    if not torch.backends.mkldnn.enabled:  # type: ignore[truthy-bool]  # a property of the module
        return False
    return not (_needs_grad(*tensors) or torch.is_autocast_enabled("cpu")) and all(
        type(z) in (torch.Tensor, torch.nn.Parameter) and z.device.type == "cpu" and z.dtype == torch.float32
        for z in tensors if z is not None
    )


def _needs_grad(*tensors):
    return torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in tensors)


def pays(form: Callable) -> bool:
    """Whether this process takes `form`: see `Probe`."""
    return PROBES[form].pays()
