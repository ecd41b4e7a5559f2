"""Lays out what a workflow with the miniature needs: a models folder with UNet and VAE, and a picture to start from.

    python tests/miniature/split.py --out DIR [--seed N]

writes DIR/diffusion_models/miniature_svd.safetensors (the whole file, which Load UNet reads), DIR/vae/miniature_vae.safetensors
(the autoencoder alone, which the host's Load VAE reads), DIR/first_frame.png and DIR/true_frames.png of a held-out world,
and DIR/world.json with its motion_bucket_id and fps.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import world  # noqa: E402

WEIGHTS = HERE / "weights" / "miniature_svd.safetensors"
PREFIX = "first_stage_model."


def lay_out(out: Path, seed: int = world.HELD_OUT) -> None:
    for folder in ("diffusion_models", "vae"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(WEIGHTS, out / "diffusion_models" / WEIGHTS.name)
    with safe_open(WEIGHTS, framework="pt") as file:
        vae = {key[len(PREFIX):]: file.get_tensor(key) for key in file.keys() if key.startswith(PREFIX)}
    save_file(vae, out / "vae" / "miniature_vae.safetensors")
    clip = world.render(world.sample_world(seed))
    _picture(clip.frames[0]).save(out / "first_frame.png")
    _picture(np.concatenate(list(clip.frames), axis=1)).save(out / "true_frames.png")
    facts = {
        "seed": seed, "motion_bucket_id": clip.world.motion_bucket_id, "fps": clip.world.fps,
        "width": world.SIZE, "height": world.SIZE, "frames": world.FRAMES,
    }
    (out / "world.json").write_text(json.dumps(facts) + "\n")


def _picture(frame: np.ndarray) -> Image.Image:
    return Image.fromarray((frame * 255).round().astype(np.uint8))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=world.HELD_OUT, help="of the world; from 10,000,000 on they are held out")
    args = parser.parse_args()
    lay_out(args.out, args.seed)
