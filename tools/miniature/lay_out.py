"""Lays out what a workflow with the miniature needs: a models folder, an image to start from, a path to follow.

    python -m tools.miniature.lay_out --out DIR [--seed N]

writes into DIR, as in the host's `models`: diffusion_models/miniature_svd.safetensors (the whole file, which Load UNet
reads), vae/miniature_vae.safetensors (the autoencoder alone, which the host's Load VAE reads) and the ControlNet; next to
them first_frame.png and true.png (the true frames, side by side) of a held-out world, and path.png, the control images of a
path through it, side by side.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tools.miniature import world

WEIGHTS = Path(__file__).resolve().parent / "weights" / "miniature_svd.safetensors"
CONTROLNET = WEIGHTS.with_name("miniature_svd_controlnet_path.safetensors")
SHOWN = world.HELD_OUT + 4  # the world of the demo
PREFIX = "first_stage_model."


def lay_out(out: Path, seed: int = SHOWN) -> None:
    for folder in ("diffusion_models", "vae", "controlnet"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(WEIGHTS, out / "diffusion_models" / WEIGHTS.name)
    shutil.copy(CONTROLNET, out / "controlnet" / CONTROLNET.name)
    with safe_open(WEIGHTS, framework="pt") as file:
        vae = {key[len(PREFIX):]: file.get_tensor(key) for key in file.keys() if key.startswith(PREFIX)}
    save_file(vae, out / "vae" / "miniature_vae.safetensors")
    clip = world.render(world.sample_world(seed))
    _image(clip.frames[0]).save(out / "first_frame.png")
    _image(np.concatenate(list(clip.frames), axis=1)).save(out / "true.png")
    path, _ = world.drawn_path(clip.world, seed)
    _image(np.concatenate(list(world.position_map(path)), axis=1)).save(out / "path.png")


def _image(frame: np.ndarray) -> Image.Image:
    return Image.fromarray((frame * 255).round().astype(np.uint8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=SHOWN, help="of the world; from 10,000,000 on they are held out")
    args = parser.parse_args()
    lay_out(args.out, args.seed)
