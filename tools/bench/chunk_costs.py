"""What does it cost to run layers in chunks? Each budget against the whole, alternating in one process.

    python dev.py bench chunks [-- --rounds 7 --only miniature block --device cpu --json FILE]

`ratio` is the median, over the rounds, of the time in chunks over that of the same round as a whole; `seconds` the median time.
On a CPU it is the processor's time with one thread, on a GPU (`--device cuda`) that on the clock.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from support.families import relative_error
from tools.miniature.lay_out import WEIGHTS
from unet import load_unet
from unet.hooks import Call
from unet.layers import VideoResBlock
from unet.transformer import SpatialVideoTransformer

MIB = 2**20
# As in nodes/bridge/model/memory_budget.py.
BUDGETS = {"whole": None, "512 MiB": 512 * MIB, "128 MiB": 128 * MIB, "32 MiB": 32 * MIB}


def miniature(device):
    """Ten calls of the trained miniature, on a clip with guidance: 2 x 8 frames of 128x128 pixels, in fp32."""
    net = load_unet(WEIGHTS, dtype=torch.float32, device=device)
    config, rows = net.config, 16
    x, y = torch.randn(rows, config.in_channels, 16, 16, device=device), torch.randn(rows, config.adm_channels, device=device)
    context, timesteps = torch.randn(rows, 1, config.context_dim, device=device), torch.full((rows,), 500.0, device=device)

    def ten_calls(budget):  # one is too short to time
        for _ in range(10):
            made = net(x, timesteps, context, y, num_frames=8, budget=budget)
        return made

    return ten_calls


def block(device, height=40, width=64):
    """The residual block and transformer of SVD's finest level: 14 frames of 512x320 pixels, in fp32."""
    make = {"operations": nn, "factory": {"dtype": torch.float32, "device": device}}
    res = VideoResBlock(320, 1280, 320, **make)
    transformer = SpatialVideoTransformer(320, 5, 64, 1, 1024, linear=True, **make)
    x, emb, context = (torch.randn(14, *shape, device=device) for shape in ((320, height, width), (1280,), (1, 1024)))

    def both_layers(budget):
        call = Call(emb, context, num_frames=14, budget=budget)
        return transformer(res(x, call), call)

    return both_layers


def large_block(device):
    """The finest level's layers on 14 frames of 1024x576 pixels, where a budget of 512 MiB runs every layer in chunks."""
    return block(device, 72, 128)


CASES = {"miniature": miniature, "block": block, "large_block": large_block}


def seconds(call, budget, device) -> float:
    if device == "cpu":
        start = time.process_time()
        call(budget)
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call(budget)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def costs(call, rounds: int, device: str) -> dict:
    """By budget: median seconds, median ratio to the whole, and how far the result is from the whole's."""
    whole = call(None)
    off = {name: relative_error(call(budget), whole) for name, budget in BUDGETS.items()}
    times = {name: [] for name in BUDGETS}
    for index in range(rounds):
        order = list(BUDGETS)
        for name in order[index % len(order):] + order[:index % len(order)]:  # none is always the first
            times[name].append(seconds(call, BUDGETS[name], device))
    return {
        name: {
            "seconds": round(median(times[name]), 4),
            "ratio": round(median(own / base for own, base in zip(times[name], times["whole"], strict=True)), 3),
            "off": float(f"{off[name]:.1e}"),
        }
        for name in BUDGETS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=["miniature", "block"], choices=CASES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    report = {"torch": torch.__version__, "device": args.device, "rounds": args.rounds}
    with torch.inference_mode():
        for name in args.only:
            report[name] = costs(CASES[name](args.device), args.rounds, args.device)
            for budget, row in report[name].items():
                print(f"{name}, {budget}: {row['seconds']} s, {row['ratio']} of the whole, off by {row['off']}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
