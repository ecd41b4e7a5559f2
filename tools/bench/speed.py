"""How fast is one call of the network? Ours next to ComfyUI's own, on the same weights in one process, in turns.

    python dev.py bench speed [-- --families svd sd15 --rounds 5 --threads 2 --device cuda --json FILE]

Untrained weights: time does not depend on their values. In each round every network runs once, the order is turned around from
round to round, and the machine's peak is measured. `seconds` (on the clock) and `CPU seconds` (of all threads) are medians, and
ratios are medians of those within a round. `TFLOP` is counted; `GFLOP/s` are those of the host's network over the seconds, for all
networks, so that they compare; `of the peak` is their share of the larger of the machine's rates. `peak MiB` are the bytes of
tensors that are alive at once, without weights: on a CPU counted in one call, on a GPU by the allocator. `error` is relative to
the host's result.

"host with SDPA" is the host's network with PyTorch's attention, which the host itself does not choose on a CPU.
"""

import argparse
import gc
import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from support.families import relative_error
from support.host_in_process import boot
from tools.bench.timing import in_turns, medians, processor, products, ratio, seconds, with_flops, with_peak

FAMILIES = ("svd", "sd15", "sdxl")
SIZES = {  # rows, height and width of the latent
    "cpu": {"svd": ["14x32x32"], "sd15": ["2x64x64"], "sdxl": ["2x64x64"]},
    "cuda": {"svd": ["14x72x128", "25x72x128"], "sd15": ["2x64x64"], "sdxl": ["2x128x128"]},
    "tiny": {"svd": ["4x8x8"], "sd15": ["2x8x8"], "sdxl": ["2x8x8"]},
}
SIDE = {"cpu": 4096, "cuda": 8192, "tiny": 256}  # of the matrices that the machine's rates are measured with
DTYPES = {"cpu": "float32", "cuda": "float16"}


def compiled(network, backend: str):
    """As the host's TorchCompileModel compiles it."""
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    return torch.compile(network, backend=backend, options={"guard_filter_fn": skip_torch_compile_dict})


def compiling(call, device: str) -> dict:
    """What the first call of a compiled network takes, and how many graphs Dynamo makes of it."""
    counters.clear()
    spent = round(seconds(call, device)[0], 1)
    breaks = sum(counters["graph_break"].values())
    return {"first call": spent, "graphs": counters["stats"]["unique_graphs"], "breaks": breaks}


def networks_of(case, networks, settings: argparse.Namespace) -> dict:
    """(network, its arguments) by name."""
    from tools.bench.speed_cases import arguments, host_takes_sdpa, with_sdpa

    given = arguments(case, networks.config, networks.dtype, settings.device)
    plans = {"ours": (networks.ours, given), "host": (networks.host, given)}
    if not host_takes_sdpa():
        plans["host with SDPA"] = networks.host, with_sdpa(given)
    if settings.compile:
        torch._dynamo.reset()
        plans |= {f"{name} compiled": (compiled(plans[name][0], settings.compile), given) for name in ("ours", "host")}
    return plans


def first_runs(prepare: dict, device: str) -> dict[str, dict]:
    """What one call of each network shows besides its time."""
    rows, results = {}, {}
    for name, call in prepare.items():
        row = rows[name] = {}
        if "compiled" in name:
            row |= compiling(call(), device)
            results[name] = call()()
        else:
            call()()  # in the first call kernels are chosen by their time, which counting would change
            results[name], work = with_flops(call())
            row["TFLOP"] = round(work / 1e12, 5)
        if device == "cuda" or "compiled" not in name:  # what counts on a CPU does not see into compiled code
            row["peak MiB"] = round(with_peak(call(), device)[1] / 2**20, 1)
    for name, row in rows.items():
        row["error"] = float(f"{relative_error(results[name], results['host']):.1e}")
    return rows


def measure(case, networks, settings: argparse.Namespace) -> dict:
    """The figures of one case: of each network, ratios of ours to each of the host's, the machine's rates."""
    from tools.bench.speed_cases import prepared

    plans = networks_of(case, networks, settings)
    prepare = {name: partial(prepared, *plan) for name, plan in plans.items()}
    rows = first_runs(prepare, settings.device)
    tries = products(settings.device, networks.dtype, settings.side)
    times = in_turns(prepare | {name: lambda call=call: call for name, call in tries.items()}, settings.rounds, settings.device)
    rates = {name: 2 * settings.side**3 / min(times[name])[0] / 1e9 for name in tries}
    for name, row in rows.items():
        row |= medians(times[name])
        rate = 1e3 * rows["host"]["TFLOP"] / row["seconds"]
        row |= {"GFLOP/s": round(rate, 1), "of the peak": round(rate / max(rates.values()), 3)}
    pairs = [("ours", name) for name in plans if name.startswith("host")]
    pairs += [("ours compiled", "host compiled")] if settings.compile else []
    return {
        "networks": rows, "ratios": {f"{mine} / {other}": ratio(times[mine], times[other]) for mine, other in pairs},
        "machine's GFLOP/s": {name: round(rate, 1) for name, rate in rates.items()},
    }


def table(name: str, figures: dict) -> str:
    """The figures of one case in lines."""
    rates = ", ".join(f"{kind} {rate}" for kind, rate in figures["machine's GFLOP/s"].items())
    lines = [f"{name}; the machine's GFLOP/s: {rates}"]
    columns = list(dict.fromkeys(column for row in figures["networks"].values() for column in row))
    lines.append(" " * 16 + "".join(f"{column:>13}" for column in columns))
    for network, row in figures["networks"].items():
        lines.append(f"  {network:14}" + "".join(f"{row.get(column, ''):>13}" for column in columns))
    lines += [f"  {kind}: {both['seconds']} (CPU seconds: {both['CPU seconds']})" for kind, both in figures["ratios"].items()]
    return "\n".join(lines)


def machine(device: str) -> dict:
    """What the figures hold for; `load`: how many processes wanted to run when it began, where the system says so."""
    return {
        "processor": processor(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "card": torch.cuda.get_device_name() if device == "cuda" else None, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def size(text: str) -> str:
    """A size as ROWSxHEIGHTxWIDTH."""
    numbers = text.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected rows, height and width of the latent, such as 14x32x32")
    return text


def measured(pack, settings: argparse.Namespace) -> dict:
    """The figures of every case that `settings` ask for, each printed when it is done; `pack` imports a module of the pack."""
    from tools.bench.speed_cases import Case, make_networks

    report = {"machine": machine(settings.device), "dtype": settings.dtype, "rounds": settings.rounds, "calls": {}}
    print(json.dumps(report["machine"]), flush=True)
    for family in settings.families:
        networks = make_networks(pack, family, settings)
        for text in settings.size or SIZES["tiny" if settings.tiny else settings.device][family]:
            for controlled in (False, True) if family == "sd15" else (False,):
                case = Case(family, *map(int, text.split("x")), controlled)
                figures = report["calls"][str(case)] = measure(case, networks, settings)
                print(table(str(case), figures), flush=True)
        del networks
        gc.collect()
    return report


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("TEMPORAL_UNET_HOST"), help="a ComfyUI checkout")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=size, nargs="+", help="rows x height x width of the latent for all families: 14x32x32")
    parser.add_argument("--device", choices=DTYPES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights (default: fp32; CUDA: fp16)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help="the same networks compiled, too")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    settings = parser.parse_args(arguments)
    settings.dtype = settings.dtype or DTYPES[settings.device]
    settings.side = SIDE["tiny" if settings.tiny else settings.device]
    return settings


def main() -> None:
    settings = parse()
    if not settings.host:
        sys.exit("speed.py: name a ComfyUI checkout with --host or in TEMPORAL_UNET_HOST.")
    package = boot(settings.host, extra_nodes=False, device=settings.device)
    torch.set_num_threads(settings.threads)
    with torch.inference_mode():
        report = measured(lambda name: importlib.import_module(f"{package}.{name}"), settings)
    text = json.dumps(report, indent=1)
    if settings.json:
        settings.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
