"""Curves written as text: `position:value` points, straight lines between them, flat beyond the ends."""

import re

import numpy as np

FORM = "expected position:value points with positions rising from 0 to 1, such as 0:1.0, 0.5:3, 1:1.0"
LARGEST = 10000  # of a value: beyond any use, and what it is multiplied with stays in the range of fp16
SEPARATOR = re.compile("[,，、；]")  # full-width signs too, here and of the colon, as Chinese and Japanese keyboards write them
QUOTED = 40  # characters of the text that a message quotes at most


def parse_curve(text: str, name: str) -> list[tuple[float, float]]:
    """The points of a curve, with values from -10000 to 10000.

    `name` is the input's, for the message. Raises ValueError, which says which point breaks which rule, where the text is no
    curve.
    """
    points: list[tuple[float, float]] = []
    last = ""
    parts = SEPARATOR.split(text)
    if len(parts) > 1 and not parts[-1].strip():  # after a comma at the end
        del parts[-1]
    for part in parts:
        position, colon, value = map(str.strip, part.replace("：", ":").partition(":"))
        x, y = _number(position), _number(value)
        if ";" in part:
            fault = "points are separated by ',', not by ';'"
        elif not colon:
            fault = "it has no colon"
        elif x is None:
            fault = "its position is not a number"
        elif not 0 <= x <= 1:
            fault = f"position {_short(position)} is not from 0 to 1"
        elif points and x <= points[-1][0]:
            fault = f"position {_short(position)} does not rise above {_short(last)}"
        elif y is None:
            fault = "its value is not a number"
        elif not abs(y) <= LARGEST:
            fault = f"value {_short(value)} is not from -{LARGEST} to {LARGEST}"
        else:
            points.append((x, y))
            last = position
            continue
        found, whole = part.strip(), text.strip()
        where = "" if found == whole else f" in {_short(whole)!r}"
        raise ValueError(f"{name}: found {_short(found)!r}{where}: {fault}; {FORM}.")
    return points


def _number(text: str) -> float | None:
    """The number that the text says, NaN and infinite ones too, or None."""
    try:
        return float(text) if text.isascii() else None
    except ValueError:
        return None


def _short(text: str) -> str:
    return text if len(text) <= QUOTED else f"{text[: QUOTED - 1]}…"


def evaluate_curve(points: list[tuple[float, float]], count: int) -> np.ndarray:
    """The curve at `count` evenly spaced positions from 0 to 1 (fp64); a single one lies at 0."""
    positions, values = zip(*points, strict=True)
    return np.interp(np.linspace(0, 1, count), positions, values)
