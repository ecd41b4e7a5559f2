"""Which files are loaded, by ours and by ComfyUI's own loaders, and do both give what the weights in them say?

    python dev.py bench files [-- --only gguf --json FILE]
    python dev.py bench files -- --costs svd     # time and memory at the whole size instead: file_costs.py

Each kind of file is written with untrained weights, as small as ComfyUI still knows the model, and loaded by both. `error` is that
of one call of the network, relative to ComfyUI's network on the weights that the file stands for; a file that is not loaded shows
the sentence that the user gets. The whole size of a model is asked where ComfyUI knows no smaller one (diffusers' layout): such
kinds are left out unless `--full` is given (2 GB on disk).
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from support.families import FULL, TINY, inputs, random_weights, relative_error
from support.full_size import pooled_weights
from support.host_in_process import boot
from tools.bench.file_costs import costs

_SMALL = {
    "model_channels": 320, "channel_mult": (1, 1), "num_res_blocks": (1, 1), "depth_in": (1, 1), "depth_out": (1, 1, 1, 1),
    "self_attention": (True, True),
}
SD1 = replace(TINY["sd1"], **_SMALL)  # widths and depths by which the host knows them
SVD = replace(TINY["svd"], model_channels=320, channel_mult=(1, 1, 1, 1))
CONFIGS = {"sd1": SD1, "svd": SVD, "sd1 of full size": FULL["sd1"], "koala_700m": TINY["koala_700m"]}


def weights_of(network: str) -> dict[str, torch.Tensor]:
    """The fp16 weights that files of this network hold."""
    config = CONFIGS[network]
    made = pooled_weights(config) if network.endswith("full size") else random_weights(config, dtype=torch.float16)
    return {name: tensor.float() if name.endswith("mix_factor") else tensor for name, tensor in made.items()}


def loaded_by_host(path: Path):
    """The MODEL by the host's own loaders of UNets, checkpoints and diffusers' folders; raises what the last of them raised."""
    import comfy.diffusers_load
    import comfy.sd

    if path.is_dir():
        return comfy.diffusers_load.load_diffusers(str(path), output_vae=False, output_clip=False)[0]
    with contextlib.suppress(Exception):
        return comfy.sd.load_diffusion_model(str(path))
    model = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]
    if model is None:
        raise RuntimeError("no model found")
    return model


def called(model, config) -> torch.Tensor:
    """One call of a MODEL's network, in the dtype in which it computes."""
    frames, dtype = 2 if config.temporal else 1, model.model.get_dtype_inference()
    call = {name: value.to(dtype) for name, value in inputs(config, frames=frames).items()}
    video = {"num_video_frames": frames, "image_only_indicator": torch.zeros(1, frames)} if config.temporal else {}
    network = model.model.diffusion_model
    given = {"transformer_options": {"cond_or_uncond": [0]}, **video}
    return network(call["x"], call["timesteps"].float(), call["context"], call.get("y"), **given).float()


def attempt(load: Callable, path: Path, config, expected: torch.Tensor | None) -> str:
    """"loads, error …, MiB", or the error's text."""
    try:
        model = load(path)
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
    if expected is None:
        return "loads"
    error = relative_error(called(model, config), expected)
    return f"loads, error {error:.0e}, {model.model_size() / 2**20:.0f} MiB"


def measure(kind, load_ours: Callable) -> dict:
    """A row of the table."""
    from support.oracle import ROWS, host_model

    with tempfile.TemporaryDirectory() as folder:
        weights = {} if kind.network is None else weights_of(kind.network)
        path, meant = kind.write(Path(folder), weights)
        config = expected = None
        if kind.network is not None:
            config = CONFIGS[kind.network]
            plain = {name: tensor.float() for name, tensor in meant.items()}
            expected = called(host_model(plain, ROWS[kind.network.split(" ")[0]]), config)
        row = {"kind": kind.title, "name": path.name}
        return row | {name: attempt(load, path, config, expected) for name, load in (("ours", load_ours), ("host", loaded_by_host))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("TEMPORAL_UNET_HOST"), help="a ComfyUI checkout")
    parser.add_argument("--only", help="kinds with this in their title")
    parser.add_argument("--full", action="store_true", help="kinds of the whole size, too")
    parser.add_argument("--json", type=Path, help="write the table here")
    parser.add_argument("--costs", nargs="+", choices=("sd1", "sdxl", "svd"), help="time and memory at the whole size")
    settings = parser.parse_args()
    if not settings.host:
        sys.exit("file_kinds.py: name a ComfyUI checkout with --host or in TEMPORAL_UNET_HOST.")
    package = boot(settings.host, extra_nodes=False)
    if settings.costs:
        for family in settings.costs:
            costs(package, family, settings.only or "")
        return
    from tools.bench.written_files import kinds

    loader = importlib.import_module(f"{package}.nodes.bridge.model.unet_loader")
    rows = []
    with torch.inference_mode():
        for kind in kinds(CONFIGS):
            if (kind.full and not settings.full) or (settings.only or "") not in kind.title:
                continue
            rows.append(measure(kind, lambda path: loader.load_model(str(path))))
            row = rows[-1]
            print(f"{row['kind']} ({row['name']})\n  ours: {row['ours']}\n  host: {row['host']}", flush=True)
    if settings.json:
        settings.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
