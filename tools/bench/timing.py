"""Time, memory and work of calls on a CPU or a GPU, and the rates of the machine's matrix products."""

import time
from collections.abc import Callable
from math import prod
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from support.live import peak_bytes

UNITS = ("seconds", "CPU seconds")  # on the clock; of the process on all its threads
Times = list[tuple[float, float]]  # by round, in UNITS


def seconds(call: Callable, device: str) -> tuple[float, float]:
    """The time of one call, in UNITS."""
    if device == "cuda":
        torch.cuda.synchronize()
    clock, work = time.perf_counter(), time.process_time()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - work


def in_turns(prepare: dict[str, Callable], rounds: int, device: str) -> dict[str, Times]:
    """Times by name and round, the order turned around from round to round.

    `prepare` gives functions that return the call to time; what they do themselves is not timed.
    """
    times: dict[str, Times] = {name: [] for name in prepare}
    for index in range(rounds):
        for name in list(prepare) if index % 2 == 0 else reversed(prepare):
            times[name].append(seconds(prepare[name](), device))
    return times


def medians(times: Times) -> dict[str, float]:
    return {unit: round(median(column), 4) for unit, column in zip(UNITS, zip(*times, strict=True), strict=True)}


def ratio(mine: Times, others: Times) -> dict[str, float]:
    """Medians of the ratios within each round."""
    pairs = list(zip(mine, others, strict=True))
    return {unit: round(median(one[index] / other[index] for one, other in pairs), 3) for index, unit in enumerate(UNITS)}


def _attention_flop(queries, keys, values, *_, **__) -> int:
    return 2 * prod(queries[:3]) * keys[2] * (queries[3] + values[3])


def _linear_flop(shape, *_, out_shape, **__) -> int:
    return 2 * shape[-1] * prod(out_shape)


def with_flops(call: Callable) -> tuple:
    """(the call's result, FLOPs of its matrix products and convolutions)."""
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}  # PyTorch's counter knows neither
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        known[torch.ops.mkldnn._linear_pointwise] = _linear_flop
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        return call(), counter.get_total_flops()


def with_peak(call: Callable, device: str) -> tuple:
    """(the call's result, the most bytes of tensors made by it that were alive at one time)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return call(), torch.cuda.max_memory_allocated() - before
    results = []
    peak = peak_bytes(lambda: results.append(call()))
    return results[0], peak


def products(device: str, dtype: torch.dtype, side: int) -> dict[str, Callable]:
    """Products of side x side matrices, 2 * side^3 FLOPs, by the libraries that linear layers may run in."""
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    calls = {"torch.mm": lambda: torch.mm(a, b)}
    if device == "cpu" and dtype == torch.float32 and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        calls["oneDNN linear"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return calls


def processor() -> str | None:
    """The processor's name where the system is Linux."""
    try:
        with open("/proc/cpuinfo") as info:
            return next((line.split(":")[1].strip() for line in info if line.startswith("model name")), None)
    except FileNotFoundError:
        return None
