"""Write the images of the templates' cards, example_workflows/<name>.jpg: what comes out, square, moving for videos.

    python dev.py make cards [-- NAME ...]

Videos are made by the miniature through the pack's own nodes, so they show its small world, twice enlarged. No frame interpolation
model is at hand: the card of that template is drawn by the same world's renderer at four times the frames. The cards of image
templates and residual files are drawings. The host asks for `<name>.jpg` only; a moving one is a WebP under that name, since
browsers go by what is in an image file.
"""
from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from support.host_in_process import boot
from tools.assets.make_examples import balloon
from tools.assets.templates import COLUMNS
from tools.bench import quality
from tools.miniature import world

FOLDER = quality.ROOT / "example_workflows"
SIZE = 256  # pixels
INK, PAPER, BLUE = "#2b2f3a", "#f4f1ea", "#4aa3df"


def enlarged(video: np.ndarray) -> list[Image.Image]:
    frames = (video.clip(0, 1) * 255).round().astype(np.uint8)
    return [Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for frame in frames]


def plain(studio):
    return enlarged(studio.make(quality.straight(1), seed=1)), 8


def labeled(frames: list[Image.Image], label: str):
    for frame in frames:
        draw, font = ImageDraw.Draw(frame), ImageFont.load_default(22)
        width = draw.textlength(label, font)
        draw.rounded_rectangle([14, 206, 38 + width, 242], 10, PAPER)
        draw.text((26, 224), label, INK, font, anchor="lm")
    return frames, 10


def from_diffusers(studio):
    return labeled(enlarged(studio.make(world.sample_world(world.HELD_OUT + 8))), "diffusers")


def of_gguf(studio):
    return labeled(enlarged(studio.make(world.sample_world(world.HELD_OUT + 3))), "GGUF")


def smooth(_studio):
    """Above as a model makes it, below with three frames between each two."""
    of = replace(quality.straight(1), start=(22.0, 64.0), heading=0.0, motion_bucket_id=200, fps=4)
    few, many = (enlarged(world.render(replace(of, fps=of.fps * times), 12 * times - times + 1).frames) for times in (1, 4))
    half = (0, SIZE // 4, SIZE, 3 * SIZE // 4)
    frames = []
    for index, frame in enumerate(many):
        card = Image.new("RGB", (SIZE, SIZE))
        card.paste(few[index // 4].crop(half), (0, 0))
        card.paste(frame.crop(half), (0, SIZE // 2))
        ImageDraw.Draw(card).line([(0, SIZE // 2), (SIZE, SIZE // 2)], PAPER, 2)
        frames.append(card)
    return frames, 16


def loop(studio):
    return enlarged(studio.make(quality.held_out(1)[0], frames=24, closed_loop=True)), 10


def long(studio):
    """With a bar that says how far it is."""
    frames = enlarged(studio.make(quality.held_out(2)[1], frames=32))
    for index, frame in enumerate(frames):
        ImageDraw.Draw(frame).rectangle([0, SIZE - 6, SIZE * (index + 1) // len(frames), SIZE], BLUE)
    return frames, 10


def led(studio):
    """With the path that leads it."""
    of = quality.held_out(2)[1]
    path = world.drawn_path(of, world.HELD_OUT + 1)
    frames = enlarged(studio.make(of, path=path[0]))
    for index, frame in enumerate(frames):
        draw = ImageDraw.Draw(frame)
        points = [tuple(2 * center) for center in path[0]]
        draw.line(points, PAPER, 2, joint="curve")
        x, y = points[index]
        draw.ellipse([x - 5, y - 5, x + 5, y + 5], None, PAPER, 2)
    return frames, 8


def miniature(studio):
    return enlarged(studio.make(world.sample_world(world.HELD_OUT + 4))), 10


def line_drawing(share: float) -> Image.Image:
    gray = ImageOps.expand(balloon(share).convert("L").filter(ImageFilter.FIND_EDGES).crop((1, 1, 511, 511)), 1)  # no frame
    return ImageOps.autocontrast(gray).point(lambda value: 255 if value > 40 else 0).convert("RGB")


def edges(_studio):
    """Left the edges, right the image."""
    card = line_drawing(0.5)
    card.paste(balloon(0.5).crop((256, 0, 512, 512)), (256, 0))
    return [card.resize((SIZE, SIZE), Image.Resampling.LANCZOS)], 0


def text(_studio):
    """The prompt above its image."""
    card = balloon(0.7).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(card)
    draw.rounded_rectangle([14, 198, SIZE - 14, 240], 12, PAPER)
    draw.text((SIZE / 2, 219), "“a hot-air balloon over green hills”", INK, ImageFont.load_default(13), anchor="mm")
    return [card], 0


def sheet(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """A file with lines in it."""
    draw.polygon([(x, y), (x + 44, y), (x + 64, y + 20), (x + 64, y + 88), (x, y + 88)], PAPER, INK, 2)
    for row in range(4):
        draw.line([(x + 12, y + 34 + 12 * row), (x + 52, y + 34 + 12 * row)], BLUE, 4)


def stack(card: Image.Image, picture, x: int, y: int) -> None:
    """Three frames, one behind the other."""
    for index in range(3):
        frame = picture(index / 2).resize((96, 96), Image.Resampling.LANCZOS)
        card.paste(ImageOps.expand(frame, 2, INK), (x + 12 * index, y + 12 * index))


def arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.line([(x, y), (x + 22, y)], INK, 4)
    draw.polygon([(x + 20, y - 8), (x + 34, y), (x + 20, y + 8)], INK)


def to_file(_studio):
    card = Image.new("RGB", (SIZE, SIZE), "#cfd8e3")
    draw = ImageDraw.Draw(card)
    stack(card, line_drawing, 10, 66)
    arrow(draw, 142, 128)
    sheet(draw, 182, 84)
    return [card], 0


def from_file(_studio):
    card = Image.new("RGB", (SIZE, SIZE), "#cfd8e3")
    draw = ImageDraw.Draw(card)
    sheet(draw, 10, 84)
    arrow(draw, 80, 128)
    stack(card, balloon, 122, 66)
    return [card], 0


CARDS = dict(zip(COLUMNS, (
    plain, from_diffusers, of_gguf, smooth, loop, long, led, miniature, edges, text, to_file, from_file,
), strict=True))


def save(path: Path, frames: list[Image.Image], fps: int) -> None:
    if len(frames) == 1:
        frames[0].save(path, quality=90)
    else:
        frames[0].save(path, "WEBP", save_all=True, append_images=frames[1:], duration=1000 // fps, loop=0, quality=70, method=6)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {'; '.join(CARDS)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(CARDS):
        parser.error(f"no such card: {'; '.join(unknown)}")
    boot(os.environ["TEMPORAL_UNET_HOST"])
    import torch

    with torch.inference_mode():
        studio = quality.Studio()
        for name in args.names or CARDS:
            save(FOLDER / f"{name}.jpg", *CARDS[name](studio))


if __name__ == "__main__":
    main()
