"""Changes of JSON: of its values, keys and depth, and such as no library writes."""
from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

VALUES = [
    0, 1, -1, 7, 0.5, 64, 2**31, 2**53 + 1, 2**63, 2**64, -2**63, 10**30, 1e308, "", "0", "8", "1e9", "../x", "/etc/passwd",
    "a\0b", "\ud800", "x" * 10_000, None, True, False, [], {}, [[]], [0], [0, 0], {"a": None}, [1, "1", None], "nf4",
    "float8_e4m3fn", "F32", "I64",
]
RAW = [  # text in the place of a value
    "NaN", "Infinity", "-Infinity", "1e999", "-0", "1" + "0" * 5000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000, '"\\ud800"',
    '{"a":1,"a":2}', "tru", "[1,]", "01", '"\\x"',
]
MOST_PLACES = 20_000  # of a value that is made longer: edits follow each other
HERE, AGAIN = "@here@", "@again@"  # stand for what json.dumps does not write


def edited(text: bytes, random: Random) -> bytes:
    """The JSON text with some changes; as it is where it is none."""
    try:
        found = {"": json.loads(text)}
        for _ in range(random.choice((1, 1, 1, 2, 5))):
            _change(found, random)
        made = json.dumps(found[""], separators=random.choice(((",", ":"), (" , ", " : "))), ensure_ascii=random.random() < 0.5)
    except (ValueError, RecursionError):
        return text
    made = made.replace(AGAIN, "").replace(f'"{HERE}"', random.choice(RAW))
    return made.encode("utf-8", "surrogatepass")


def _change(root: dict, random: Random) -> None:
    """One change at a random place; `root` keeps the whole under ""."""
    places = list(_places(root))
    container, key = random.choice(places)
    other, its = random.choice(places)
    match random.randrange(8):
        case 0 | 1:
            container[key] = random.choice(VALUES)
        case 2:
            container[key] = HERE
        case 3:
            container[key] = _near(container[key], random)
        case 4:
            container[key] = json.loads(json.dumps(other[its])) if len(places) < MOST_PLACES else None
        case 5 if container is not root:
            del container[key]
        case 6 if isinstance(container, dict) and container is not root:
            container[f"{key}{AGAIN}"] = random.choice([container[key], random.choice(VALUES)])
        case 7 if isinstance(container, dict) and container is not root:
            container[str(_near(key, random))] = container.pop(key)
        case _:
            container[key] = [container[key]] * (1 if isinstance(container[key], (dict, list)) else random.choice((1, 2, 1000)))


def _near(value, random: Random):
    """A value not far from this one: a text with another number in it, a number plus or minus one, one as text."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return random.choice([value + 1, value - 1, -value, value * 2, str(value), float(min(value, 2**60)), [value]])
    if isinstance(value, str) and value:
        at = random.randrange(len(value))
        return random.choice([
            value[:at] + random.choice("0123456789.._-ab/\\\0é") + value[at + 1:], value[:at], value[at:],
            (value + value)[:MOST_PLACES], value[:at] + str(random.choice(VALUES[:12])) + value[at:],
        ])
    if isinstance(value, list):
        return random.choice([value[:-1], (value + value)[:MOST_PLACES], value[::-1], [*value, 1]])
    return value


def _places(container) -> Iterator[tuple]:
    """Every (container, key or index) in it."""
    keys = list(container) if isinstance(container, dict) else range(len(container))
    for key in keys:
        yield container, key
        if isinstance(container[key], (dict, list)):
            yield from _places(container[key])
