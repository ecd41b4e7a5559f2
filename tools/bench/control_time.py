"""What a ControlNet costs: a step of SD 1.5 at full size with and without, our nodes on our MODEL and the host's on its own.

    python dev.py bench control [-- --rounds 5 --size 256 --json FILE]

Untrained weights in fp32 on the CPU: time does not depend on their values. The four runs of a round follow one another, so they
share what else the machine does.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from support.host_in_process import boot, node

STEPS = 2


def seconds_a_step(model, conds, size: int) -> float:
    """Of the host's KSampler with guidance on one image of size x size pixels."""
    from support.oracle import sample

    begun = time.perf_counter()
    sample(model, *conds, frames=1, size=(size // 8, size // 8), steps=STEPS, cfg=7.0)
    return (time.perf_counter() - begun) / STEPS


def measure(package: str, rounds: int, size: int) -> dict:
    """Medians of the rounds, and medians of the ratios within each round."""
    from support import oracle
    from support.families import FULL

    oracle.SMALL["sd1"] = FULL["sd1"]
    with tempfile.TemporaryDirectory() as folder:
        pair = oracle.Pair(lambda name: importlib.import_module(f"{package}.{name}"), Path(folder), "sd1")
        plain, net, image = oracle.prompts(pair.config), oracle.controlnet("sd1"), oracle.hints(1, size=size)
        controlled = {
            name: oracle.run_node(node(apply), *plain, net, image, 0.7, 0.0, 1.0)
            for name, apply in (("ours", "TemporalUNetApplyControlNetResiduals"), ("host", "ControlNetApplyAdvanced"))
        }
        runs = {
            "ours": (pair.ours, plain), "host": (pair.host, plain),
            "ours, controlled": (pair.ours, controlled["ours"]), "host, controlled": (pair.host, controlled["host"]),
        }
        for model, conds in runs.values():
            seconds_a_step(model, conds, size)
        times = [{name: seconds_a_step(model, conds, size) for name, (model, conds) in runs.items()} for _ in range(rounds)]
    medians = {name: round(statistics.median(row[name] for row in times), 3) for name in runs}
    for name in ("ours", "host"):
        added = statistics.median(row[f"{name}, controlled"] / row[name] for row in times)
        medians[f"{name}: controlled to uncontrolled"] = round(added, 3)
    ratios = [row["ours, controlled"] / row["host, controlled"] for row in times]
    medians["controlled: ours to host"] = round(statistics.median(ratios), 3)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("TEMPORAL_UNET_HOST"), help="a ComfyUI checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if not args.host:
        sys.exit("control_time.py: name a ComfyUI checkout with --host or in TEMPORAL_UNET_HOST.")
    package = boot(args.host)
    import torch

    with torch.inference_mode():
        text = json.dumps({"seconds a step": measure(package, args.rounds, args.size)}, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
