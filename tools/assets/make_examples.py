"""Write web/examples/: the photos and the video that templates start from, which the editor puts into the input folder.

    python dev.py make examples
"""
from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from tools.miniature import world
from tools.miniature.lay_out import SHOWN

EXAMPLES = Path(__file__).resolve().parents[2] / "web" / "examples"
SIZE, FRAMES, FPS = 512, 14, 6
SMOOTH = 3  # times the size at which it is drawn
STRIPES = ("#d9472b", "#f2a33a", "#f7d774", "#f2a33a", "#d9472b")


def balloon(share: float) -> Image.Image:
    """A hot-air balloon over hills, at this share 0..1 of its way up."""
    picture = Image.new("RGB", (SIZE * SMOOTH, SIZE * SMOOTH))
    draw = ImageDraw.Draw(picture)
    for y in range(SIZE * SMOOTH):  # the sky, lighter toward the hills
        light = y / (SIZE * SMOOTH)
        draw.line([(0, y), (SIZE * SMOOTH, y)], tuple(round(a + light * (b - a)) for a, b in ((92, 226), (164, 238), (222, 240))))
    scale = SIZE * SMOOTH
    for base, height, phase, color in ((0.78, 0.05, 0.4, "#8fb58b"), (0.86, 0.06, 2.1, "#5f9a63"), (0.94, 0.03, 4.0, "#3d7a49")):
        hill = [(x * scale, (base - height * math.sin(5 * x + phase)) * scale) for x in np.linspace(0, 1, 60)]
        draw.polygon([*hill, (scale, scale), (0, scale)], color)
    x, y, r = (0.40 + 0.2 * share) * scale, (0.44 - 0.2 * share) * scale, 0.15 * scale
    for index, color in enumerate(STRIPES):  # the envelope: stripes of narrowing ellipses above a cone
        wide = r * math.cos(math.pi * index / (2 * len(STRIPES)))
        cone = [(-0.96, 0.25), (0.96, 0.25), (0.2, 1.5), (-0.2, 1.5)]
        draw.polygon([(x + a * wide, y + b * r) for a, b in cone], color)
        draw.ellipse([x - wide, y - r, x + wide, y + r], color)
    for side in (-1, 1):
        draw.line([(x + side * 0.18 * r, y + 1.45 * r), (x + side * 0.15 * r, y + 1.9 * r)], "#4a3522", scale // 250)
    draw.rectangle([x - 0.17 * r, y + 1.85 * r, x + 0.17 * r, y + 2.1 * r], "#7a4f2a")
    return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def write_video(path: Path, pictures: list[Image.Image]) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_image(picture)))
        file.mux(stream.encode(None))


def main() -> None:
    EXAMPLES.mkdir(exist_ok=True)
    pictures = [balloon(index / (FRAMES - 1)) for index in range(FRAMES)]
    pictures[0].save(EXAMPLES / "temporal_unet_balloon.png", optimize=True)
    write_video(EXAMPLES / "temporal_unet_balloon.mp4", pictures)
    frame = world.render(world.sample_world(SHOWN), 1).frames[0]
    Image.fromarray((frame * 255).round().astype(np.uint8)).save(EXAMPLES / "temporal_unet_miniature.png", optimize=True)
    for path in sorted(EXAMPLES.iterdir()):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
