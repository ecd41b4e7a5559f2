"""Curves written as text: `position:value` points, straight lines between them, flat beyond the ends."""

import math

import numpy as np

FORM = "expected position:value points with positions rising from 0 to 1, such as 0:1.0, 0.5:3, 1:1.0"


def parse_curve(text: str, name: str) -> list[tuple[float, float]]:
    """The points of a curve; `name` is the input's, for the message. Raises ValueError where the text is no curve."""
    points = []
    for part in text.split(","):
        position, colon, value = map(str.strip, part.partition(":"))
        try:
            point = float(position), float(value)
        except ValueError:
            point = math.nan, math.nan
        risen = not points or point[0] > points[-1][0]
        if not colon or not (position + value).isascii() or not 0 <= point[0] <= 1 or not math.isfinite(point[1]) or not risen:
            raise ValueError(f"{name}: found {part.strip()!r} in {text.strip()!r}; {FORM}.")
        points.append(point)
    return points


def evaluate_curve(points: list[tuple[float, float]], count: int) -> np.ndarray:
    """The curve at `count` evenly spaced positions from 0 to 1 (fp64); a single one lies at 0."""
    positions, values = zip(*points)
    return np.interp(np.linspace(0, 1, count), positions, values)
