"""Writes the moving images of the nodes' help pages: the same first frame under different settings, made by the miniature.

    python dev.py make help-pictures [-- NAME ...]
"""

import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from support.host_in_process import boot
from tools.bench import long_clips, quality
from tools.miniature import world

DOCS = quality.ROOT / "web" / "docs"
FPS = 6
GAP, LABEL = 6, 18  # pixels


def animation(videos: dict[str, np.ndarray], path: Path, fps=FPS) -> None:
    """A WebP that loops: the videos [t, h, w, 3] side by side, each over its label; a short one holds its last frame."""
    length = max(len(video) for video in videos.values())
    font = ImageFont.load_default(12)
    frames = []
    for t in range(length):
        width = len(videos) * (world.SIZE + GAP) - GAP
        frame = Image.new("RGB", (width, world.SIZE + LABEL), "white")
        draw = ImageDraw.Draw(frame)
        for index, (label, video) in enumerate(videos.items()):
            left = index * (world.SIZE + GAP)
            picture = video[min(t, len(video) - 1)].clip(0, 1) * 255
            frame.paste(Image.fromarray(picture.round().astype(np.uint8)), (left, 0))
            draw.text((left + world.SIZE / 2, world.SIZE + LABEL / 2), label, "black", font, anchor="mm")
        frames.append(frame)
    times = [1000 // fps] * (length - 1) + [800]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=80, method=6)
    print(f"{path.relative_to(quality.ROOT)}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def motion_bucket(studio):
    of = quality.straight(1)
    words = {"calm": 40, "natural": 127, "lively": 200}
    return {f"{word}: {value}": studio.make(world.with_motion(of, value)) for word, value in words.items()}


def fps(studio):
    of = quality.straight(1)
    return {f"fps {value}": studio.make(world.with_motion(of, 127, fps=value)) for value in (5, 7, 10)}


def augmentation(studio):
    of = quality.straight(1)
    return {f"level {value}": studio.make(of, augmentation_level=value) for value in (0.0, 0.05, 0.3)}


def guidance(studio):
    of = quality.straight(1)
    return {f"max_cfg {value}": studio.make(of, cfg=(1.0, value)) for value in (1.0, 2.5, 8.0)}


def windows(studio):
    of = quality.held_out(1)[0]
    return {
        "one window, 8 frames": studio.make(of), "32 frames": studio.make(of, frames=32),
        "32, closed_loop": studio.make(of, frames=32, closed_loop=True),
    }


def chained(studio):
    of = quality.held_out(3)[2]  # whose colors drift most
    return {
        f"{guidance}, {'kept' if keep else 'not kept'}": long_clips.chain(studio, of, 0, quality.STEPS, guidance, keep)
        for guidance, keep in (("triangle", True), ("linear", True), ("linear", False))
    }


def led(studio):
    of = quality.held_out(2)[1]
    path, _ = world.drawn_path(of, world.HELD_OUT + 1)
    made = {f"strength {value:g}": studio.make(of, path=path, strength=value) for value in (0.0, 0.5, 1.0)}
    return {"control images": world.position_map(path), **made}


PICTURES = {  # name -> (page, what is in it)
    "motion_bucket": ("TemporalUNetSVDConditioning", motion_bucket),
    "fps": ("TemporalUNetSVDConditioning", fps),
    "augmentation": ("TemporalUNetSVDConditioning", augmentation),
    "guidance": ("TemporalUNetSVDSampler", guidance),
    "windows": ("TemporalUNetSVDSampler", windows),
    "chained": ("TemporalUNetContinueVideo", chained),
    "strength": ("TemporalUNetApplyControlNetResiduals", led),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(PICTURES):
        parser.error(f"no such picture: {', '.join(unknown)}")
    boot(os.environ["TEMPORAL_UNET_HOST"])
    import torch

    with torch.inference_mode():
        studio = quality.Studio()
        for name in args.names or PICTURES:
            page, make = PICTURES[name]
            animation(make(studio), DOCS / page / f"{name}.webp")


if __name__ == "__main__":
    main()
