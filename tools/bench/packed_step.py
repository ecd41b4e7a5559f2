"""One step of the whole SVD with GGUF weights, next to the same network loaded as fp16: CPU seconds, in turns in one process.

    python dev.py bench packed [-- --types Q8_0 Q4_0 --sizes 14x16x16 --rounds 3]

Weights are zeros: time does not depend on their values. `dequantizing` is that of every weight once, which a step does, in what the
network computes in; the fp16 network casts its weights in each step, too.
"""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path

import torch

from support.families import FULL
from support.host_in_process import boot
from tools.bench.file_costs import packed, zeros
from tools.bench.timing import in_turns, medians, ratio, seconds

CONFIG = FULL["svd"]
FP16 = "fp16"


def loaded(package: str, types: list[str]) -> dict:
    """A MODEL for fp16 and each type."""
    load = importlib.import_module(f"{package}.nodes.bridge.model.unet_loader").load_model
    made = {}
    for kind in (FP16, *types):
        with tempfile.TemporaryDirectory() as folder:
            path = packed(Path(folder), zeros(CONFIG), "F16" if kind == FP16 else kind)
            made[kind] = load(str(path), {"dtype": torch.float16} if kind == FP16 else {})
    return made


def step(model, size: str):
    """One call of the network on so many frames of so many latent pixels."""
    frames, height, width = map(int, size.split("x"))
    dtype = model.model.get_dtype_inference()
    x, context = torch.randn(frames, CONFIG.in_channels, height, width), torch.randn(frames, 1, CONFIG.context_dim)
    given = {
        "y": torch.randn(frames, CONFIG.adm_channels).to(dtype), "num_video_frames": frames,
        "transformer_options": {"cond_or_uncond": [0]},
    }
    times = torch.full((frames,), 1.5)
    return lambda: model.model.diffusion_model(x.to(dtype), times, context.to(dtype), **given)


def dequantizing(model) -> float:
    """CPU seconds of dequantizing every weight once."""
    dtype = model.model.get_dtype_inference()
    weights = [weight.to(dtype) for weight in model.model.diffusion_model.parameters() if hasattr(weight, "_qdata")]

    def all_weights():
        for weight in weights:
            weight.dequantize()

    return min(seconds(all_weights, "cpu")[1] for _ in range(2))


def measure(models: dict, size: str, rounds: int) -> None:
    """Prints rows of a table in Markdown."""
    calls = {kind: step(model, size) for kind, model in models.items()}
    for call in calls.values():
        call()  # oneDNN's forms are tried in the first
    times = in_turns({kind: lambda call=call: call for kind, call in calls.items()}, rounds, "cpu")
    for kind, model in models.items():
        spent, more = medians(times[kind])["CPU seconds"], dequantizing(model)
        of_fp16 = ratio(times[kind], times[FP16])["CPU seconds"]
        print(f"| {size} | {kind} | {spent:.2f} | {of_fp16:.3f} | {more:.2f} ({more / spent:.0%}) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("TEMPORAL_UNET_HOST"), help="a ComfyUI checkout")
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_0"])
    parser.add_argument("--sizes", nargs="+", default=["14x16x16"], help="frames x height x width of the latent")
    parser.add_argument("--rounds", type=int, default=3)
    settings = parser.parse_args()
    if not settings.host:
        sys.exit("packed_step.py: name a ComfyUI checkout with --host or in TEMPORAL_UNET_HOST.")
    package = boot(settings.host, extra_nodes=False)
    with torch.inference_mode():
        models = loaded(package, settings.types)
        print("| frames and latent | weights | CPU seconds | of fp16 | dequantizing |\n|---|---|---|---|---|")
        for size in settings.sizes:
            measure(models, size, settings.rounds)


if __name__ == "__main__":
    main()
