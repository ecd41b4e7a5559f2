"""Linear layers by oneDNN, with a GELU, a product or a sum fused into them, where that is faster than PyTorch's own.

On a CPU PyTorch's fp32 linear calls MKL, which on AMD leaves part of the processor unused; oneDNN, which the convolutions
run by, does not. The operator is PyTorch's own but private, so each form of it is probed once, for its result and its time.
"""

import functools
import math
import platform
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

ROWS = 256  # below, a call costs more than it saves
SLOWER = 1.1  # times PyTorch's time that a form may take: where both are as fast, noise must not change what is chosen
EQUAL = 1e-5  # largest relative error of a probe, several times what another order of summation makes
ROUNDS = (5, 20)  # of a probe, at least and at most: other processes' work hides what a form can do, for a while
PROBE = (512, 320, 640)  # rows, channels in, channels out: about a millisecond


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


# What PyTorch's own kernels make of the same, for the probe.
PLAIN: dict[Callable, Callable] = {
    linear: F.linear,
    gelu: lambda x, weight, bias: F.gelu(F.linear(x, weight, bias)),
    times: lambda x, weight, bias, other: F.linear(x, weight, bias) * other,
    plus: lambda x, weight, bias, other: F.linear(x, weight, bias) + other,
}


def takes(form: Callable, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `form` (a function of this module) may and should compute this linear layer of x."""
    return are_plain(x, weight, bias) and x.numel() >= ROWS * x.shape[-1] and pays(form)


def are_plain(*tensors: torch.Tensor | None) -> bool:
    """Whether these are fp32 on a CPU, and no compiler, gradient or autocast asks for the usual kernels."""
    if torch.compiler.is_compiling():  # the compiler fuses on its own, and cannot look into a probe
        return False
    return not (_needs_grad(*tensors) or torch.is_autocast_enabled("cpu")) and all(
        type(z) in (torch.Tensor, torch.nn.Parameter) and z.device.type == "cpu" and z.dtype == torch.float32
        for z in tensors if z is not None
    )


def _needs_grad(*tensors):
    return torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in tensors)


@functools.cache
def pays(form: Callable) -> bool:
    """Whether this machine has `form`, right and not slower than PyTorch's kernels: tried once a process, some milliseconds."""
    rows, n_in, n_out = PROBE
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, n_in), (n_out, n_in), (n_out,)] + [(rows, n_out)] * (form in (times, plus))
    args = [torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) for shape in shapes]
    return is_quicker(form, PLAIN[form], args, SLOWER)


def is_quicker(form: Callable, plain: Callable, args: Sequence[torch.Tensor], share: float) -> bool:
    """Whether oneDNN computes `form` of these, with plain's result and in at most this share of its time."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    with torch.no_grad():
        try:
            made = form(*args)
        except (RuntimeError, TypeError, AttributeError):  # another version's operator: not there for this, or with other arguments
            return False
        expected = plain(*args)
        if made.shape != expected.shape or not (made - expected).norm() <= EQUAL * expected.norm():
            return False
        least, most = ROUNDS
        fastest = fastest_plain = math.inf
        for count in range(1, most + 1):
            fastest = min(fastest, _seconds(form, args))
            fastest_plain = min(fastest_plain, _seconds(plain, args))
            if count >= least and fastest <= share * fastest_plain:
                return True
    return False


def _seconds(function, args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start
