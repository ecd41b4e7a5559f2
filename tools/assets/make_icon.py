"""Draws the registry's icon and banner: a strip of film bent to a U, whose frames clear from noise to a sunrise on the way.

    python dev.py make icon

writes tools/assets/icon.png (400x400) and banner.png (1260x540). pyproject.toml names them by the repository's address.
"""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
FINE = 4  # drawn that many times as large, then averaged
# In sides of the icon: where the strip ends and bends, its middle line's radius, its width.
TOP, BEND, RADIUS, WIDTH = 0.13, 0.55, 0.235, 0.21
FRAMES = 9
NIGHT, STRIP, HOLE = (24, 22, 46), (8, 8, 18), (214, 210, 236)
SKY, GROUND, SUN = ((66, 72, 168), (255, 150, 96)), (52, 34, 84), (255, 238, 176)


def along_the_strip(side: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel [side, side]: how far along the strip it is, 0 to 1, and how far off its middle line, in half widths."""
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    x = x - 0.5
    leg, half_turn = BEND - TOP, np.pi * RADIUS
    angle = np.arctan2(y - BEND, -x)  # 0 on the left, pi on the right, below the bend
    distance = np.where(y < BEND, np.where(x < 0, y - TOP, leg + half_turn + BEND - y), leg + angle * RADIUS)
    off = np.where(y < BEND, np.abs(x), np.hypot(x, y - BEND)) - RADIUS
    return distance / (2 * leg + half_turn), off / (WIDTH / 2)


def sunrise(u: np.ndarray, v: np.ndarray, height: np.ndarray) -> np.ndarray:
    """A color for each place in a frame; u to the right and v up, both -1 to 1, and the sun's center at this height."""
    up = ((v + 1) / 2)[..., None]
    color = np.array(SKY[1]) * (1 - up) + np.array(SKY[0]) * up
    color = np.where((np.hypot(u, (v - height) * 1.3) < 0.5)[..., None], SUN, color)
    hills = v < -0.45 + 0.16 * np.sin(3 * u + 1)
    return np.where(hills[..., None], GROUND, color)


def icon(side: int) -> Image.Image:
    fine = side * FINE
    t, off = along_the_strip(fine)
    index = np.clip((t * FRAMES).astype(int), 0, FRAMES - 1)
    u = (t * FRAMES - index) * 2 - 1
    progress = index / (FRAMES - 1)
    picture = sunrise(off / 0.62, u, -0.75 + 1.1 * progress)  # upright where the strip runs upwards
    grain = np.random.default_rng(7).uniform(40, 225, (fine // (5 * FINE) + 1,) * 2 + (3,))
    noise = grain.repeat(5 * FINE, 0).repeat(5 * FINE, 1)[:fine, :fine]
    share = (np.clip(1.15 - 1.45 * progress, 0, 1) ** 0.8)[..., None]
    picture = noise * share + picture * (1 - share)

    in_strip = (np.abs(off) < 1) & (t > 0) & (t < 1)
    in_frame = (np.abs(off) < 0.62) & (np.abs(u) < 0.9)
    holes = (np.abs(np.abs(off) - 0.81) < 0.085) & (np.abs((t * FRAMES * 3) % 1 - 0.5) < 0.27)
    glow = np.linspace(1.5, 0.8, fine)[:, None, None]
    image = np.broadcast_to(np.array(NIGHT) * glow, (fine, fine, 3)).copy()
    for where, color in ((in_strip, STRIP), (in_strip & holes, HOLE)):
        image[where] = color
    image[in_strip & in_frame] = picture[in_strip & in_frame]
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BOX)


def banner(width: int, height: int) -> Image.Image:
    left = icon(height)
    sheet = left.crop((0, 0, 1, height)).resize((width, height))
    sheet.paste(left)
    draw = ImageDraw.Draw(sheet)
    title, line = ImageFont.load_default(96), ImageFont.load_default(37)
    draw.text((height - 4, height * 0.44), "Temporal UNet", "white", title, anchor="lm")
    draw.text((height - 4, height * 0.59), "a photo becomes a video, in ComfyUI", HOLE, line, anchor="lm")
    return sheet


if __name__ == "__main__":
    for name, image in (("icon", icon(400)), ("banner", banner(1260, 540))):
        path = HERE / f"{name}.png"
        image.save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
