"""A small moving world with exact ground truth: one sprite that flies straight and bounces at the borders of the image.

The first frame determines all that follows: the sprite points where it flies, `motion_bucket_id` sets its speed and
`fps` the time between frames. Everything follows from a seed; nothing is read from disk. numpy only.
"""

import colorsys
from dataclasses import dataclass, replace

import numpy as np

SIZE = 128  # pixels, width and height of an image
FRAMES = 8  # of a clip
MARGIN = 15  # pixels between a sprite's center and the border where it bounces
SPEED = 0.15  # pixels a second for each step of motion_bucket_id: 127 at 6 fps moves 3.2 pixels a frame
FPS = (5, 10)  # range in training
BUCKETS = (32, 255)  # range in training
DRAWN_PACE = (2.0, 6.5)  # pixels a frame along a drawn path
DRAWN_TURN = (0.15, 0.45)  # radians a frame by which it turns
HELD_OUT = 10_000_000  # seeds from here on are never trained on

COLORS = (
    (0.95, 0.25, 0.20), (1.00, 0.60, 0.10), (0.98, 0.90, 0.20), (0.30, 0.88, 0.30),
    (0.20, 0.80, 0.98), (0.62, 0.42, 1.00), (1.00, 0.45, 0.80),
)


def _drop() -> list[tuple[float, float]]:
    """A round head in front, a pointed tail behind."""
    angles = np.linspace(-2.1, 2.1, 13)
    return [(-13.0, 0.0), *((4 + 8 * np.cos(a), 8 * np.sin(a)) for a in angles)]


# Outlines in pixels, pointing along +x.
SHAPES = {
    "arrow": [(13, 0), (2, 11), (2, 4.5), (-12, 4.5), (-12, -4.5), (2, -4.5), (2, -11)],
    "dart": [(14, 0), (-11, 11), (-6, 0), (-11, -11)],
    "drop": _drop(),
    "fish": [(12, 0), (7, 5.5), (0, 8), (-6, 3), (-13, 9), (-13, -9), (-6, -3), (0, -8), (7, -5.5)],
    "rocket": [(14, 0), (8, 5.5), (-5, 5.5), (-12, 11), (-12, -11), (-5, -5.5), (8, -5.5)],
}


def _centred(outline) -> np.ndarray:
    """The polygon [n, 2] moved so that the centroid of its area is the origin."""
    p = np.asarray(outline, dtype=np.float64)
    q = np.roll(p, -1, axis=0)
    cross = p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]
    return p - ((p + q) * cross[:, None]).sum(0) / (3 * cross.sum())


OUTLINES = {name: _centred(outline) for name, outline in SHAPES.items()}


@dataclass(frozen=True)
class World:
    """What is in the image and how it moves. Positions in pixels (x right, y down), angles in radians from +x."""

    shape: str
    color: tuple[float, float, float]
    background: tuple[tuple[float, float, float], tuple[float, float, float]]  # the two ends of the gradient
    gradient: float  # its direction
    start: tuple[float, float]  # the sprite's center in the first frame
    heading: float  # where it points and flies in the first frame
    motion_bucket_id: int
    fps: int


@dataclass(frozen=True)
class Clip:
    """A rendered video and the truth about it."""

    world: World
    frames: np.ndarray  # [t, h, w, 3], fp32, 0 to 1
    centres: np.ndarray  # [t, 2] pixels, (x, y); pixel (0, 0) has its middle at 0
    sprite: np.ndarray  # [t, h, w], the sprite's coverage of each pixel, 0 to 1


def sample_world(seed: int) -> World:
    """The world of this seed."""
    rng = np.random.default_rng([20_231_125, seed])

    def dark() -> tuple[float, float, float]:
        return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.2, 0.7), rng.uniform(0.08, 0.42))

    return World(
        shape=str(rng.choice(list(OUTLINES))),
        color=COLORS[rng.integers(len(COLORS))],
        background=(dark(), dark()),
        gradient=rng.uniform(-np.pi, np.pi),
        start=tuple(rng.uniform(MARGIN, SIZE - 1 - MARGIN, 2)),
        heading=rng.uniform(-np.pi, np.pi),
        motion_bucket_id=int(rng.integers(BUCKETS[0], BUCKETS[1] + 1)),
        fps=int(rng.integers(FPS[0], FPS[1] + 1)),
    )


def motion(world: World, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """The sprite's centers [t, 2] in pixels and headings [t]; it bounces as light does from a mirror."""
    step = SPEED * world.motion_bucket_id / world.fps
    direction = np.array([np.cos(world.heading), np.sin(world.heading)])
    free = np.array(world.start) + step * np.arange(frames)[:, None] * direction
    span = SIZE - 1 - 2 * MARGIN
    phase = (free - MARGIN) % (2 * span)
    back = phase > span
    centres = MARGIN + np.where(back, 2 * span - phase, phase)
    flown = np.where(back, -direction, direction)
    return centres, np.arctan2(flown[:, 1], flown[:, 0])


def backdrop(world: World) -> np.ndarray:
    """The image without its sprite [h, w, 3]: a linear gradient."""
    axis = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2) / (SIZE - 1)
    along = np.cos(world.gradient) * axis[None, :] + np.sin(world.gradient) * axis[:, None]
    share = (along / np.sqrt(2) + 0.5)[..., None].astype(np.float32)
    first, last = np.asarray(world.background, dtype=np.float32)
    return first + share * (last - first)


def distance(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Signed distance [...] of points [..., 2] to a polygon [n, 2], negative inside (Quilez, "sdPolygon")."""
    start, end = outline, np.roll(outline, 1, axis=0)
    edge = end - start
    to = points[..., None, :] - start
    along = np.clip((to * edge).sum(-1) / (edge * edge).sum(-1), 0, 1)
    nearest = np.square(to - edge * along[..., None]).sum(-1).min(-1)
    y = points[..., None, 1]
    above, below = y >= start[:, 1], y < end[:, 1]
    left = edge[:, 0] * to[..., 1] > edge[:, 1] * to[..., 0]
    crossings = ((above & below & left) | (~above & ~below & ~left)).sum(-1)
    return np.sqrt(nearest) * np.where(crossings % 2, -1, 1)


def draw(picture: np.ndarray, world: World, centre: np.ndarray, heading: float) -> np.ndarray:
    """Draws the sprite into `picture` [h, w, 3], antialiased; returns its coverage of each pixel [h, w]."""
    reach = 20
    x0, y0 = np.maximum(np.floor(centre).astype(int) - reach, 0)
    x1, y1 = np.minimum(np.floor(centre).astype(int) + reach + 1, SIZE)
    y, x = np.mgrid[y0:y1, x0:x1]
    x, y = x - centre[0], y - centre[1]
    cos, sin = np.cos(heading), np.sin(heading)
    local = np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1)  # the sprite points along local +x
    cover = np.clip(0.5 - distance(local, OUTLINES[world.shape]), 0, 1).astype(np.float32)
    nose = np.clip((local[..., :1] - 3) / 2, 0, 1) * 0.85  # a bright nose shows front and back from afar
    paint = (np.asarray(world.color) * (1 - nose) + nose).astype(np.float32)
    region = picture[y0:y1, x0:x1]
    region += cover[..., None] * (paint - region)
    coverage = np.zeros((SIZE, SIZE), dtype=np.float32)
    coverage[y0:y1, x0:x1] = cover
    return coverage


def render(world: World, frames: int = FRAMES, path: tuple[np.ndarray, np.ndarray] | None = None) -> Clip:
    """The video of this world, from its first frame on; `path` (centers [t, 2], headings [t]) in place of its own."""
    centres, headings = motion(world, frames) if path is None else path
    video = np.repeat(backdrop(world)[None], frames, axis=0)
    sprite = np.stack([draw(video[i], world, centres[i], headings[i]) for i in range(frames)])
    return Clip(world, video, centres, sprite)


def drawn_path(world: World, seed: int, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """A curve away from the natural path, at a pace of its own: centers [t, 2] in pixels and headings [t].

    It starts as the world does; the sprite points along it and bounces at the borders.
    """
    rng = np.random.default_rng([20_231_126, seed])
    pace = rng.uniform(*DRAWN_PACE)
    turn = rng.uniform(*DRAWN_TURN) * rng.choice([-1, 1])
    centre, flip, angle = np.array(world.start), np.ones(2), world.heading
    centres, headings = [], []
    for _ in range(frames):
        direction = flip * (np.cos(angle), np.sin(angle))
        centres.append(centre)
        headings.append(np.arctan2(direction[1], direction[0]))
        angle += turn
        centre = centre + pace * flip * (np.cos(angle), np.sin(angle))
        outside = (centre < MARGIN) | (centre > SIZE - 1 - MARGIN)
        centre = np.where(outside, 2 * np.clip(centre, MARGIN, SIZE - 1 - MARGIN) - centre, centre)
        flip = np.where(outside, -flip, flip)
    return np.stack(centres), np.array(headings)


def position_map(centres: np.ndarray) -> np.ndarray:
    """The control images of a path [t, 2]: a white disc of 7 pixels' radius at each center on black, [t, h, w, 3]."""
    y, x = np.mgrid[:SIZE, :SIZE]
    away = np.hypot(x - centres[:, 0, None, None], y - centres[:, 1, None, None])
    disc = np.clip(7.5 - away, 0, 1).astype(np.float32)
    return np.repeat(disc[..., None], 3, axis=-1)


def with_motion(world: World, motion_bucket_id: int, fps: int | None = None) -> World:
    """The same world, moving at another speed."""
    return replace(world, motion_bucket_id=motion_bucket_id, fps=fps or world.fps)
