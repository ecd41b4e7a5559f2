"""Sound safetensors files of other tensors: what their names, shapes and dtypes make the pack take them for."""
from __future__ import annotations

import json
import math
import re
import struct
from random import Random

NUMBERS = [
    0, 1, 2, 3, 4, 7, 31, 32, 127, 128, 255, 256, 2**15, 2**16, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63,
    2**64 - 1,
]
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I64": 64, "I32": 32, "I8": 8, "U8": 8,
    "BOOL": 8, "C64": 64, "F4": 4, "F6_E2M3": 6,
}
ENDS = (
    ".weight_scale", ".comfy_quant", ".scale_weight", ".quant_state.bitsandbytes__nf4", ".absmax", ".SCB", ".alpha",
    ".lora_up.weight",
)
KEYS = ("temporal_unet.head_channels", "temporal_unet.num_frames", "_quantization_metadata", "lora_adapter_metadata", "controls")
TEXTS = ("0", "1", "7", "64", "-1", "1e9", "9" * 5000, '{"layers": {"a": 1}}', "{", "[" * 99_999, "\u0663")
MOST_DATA = 2**24  # bytes of all tensors of a file


def tensors(data: bytes, random: Random) -> bytes:
    """The file with some tensors left out, added, renamed, of another shape or dtype; as it is where it is none."""
    size = int.from_bytes(data[:8], "little")
    try:
        listed = json.loads(data[8:8 + size])
        metadata = listed.pop("__metadata__", {})
        found = [[name, row["dtype"], list(row["shape"])] for name, row in listed.items()]
        sizes = [dim for _, _, shape in found for dim in shape]
        assert found and all(dtype in BITS for _, dtype, _ in found) and all(type(dim) is int and dim >= 0 for dim in sizes)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, AssertionError):  # another edit's work
        return data
    for _ in range(random.choice((1, 1, 2, 4))):
        _change(found, metadata, random)
    return _sound(found, metadata, data[8 + size:])


def _change(found: list, metadata: dict, random: Random) -> None:
    index = random.randrange(len(found))
    name, dtype, shape = row = found[index]
    match random.randrange(9):
        case 0 if len(found) > 1:
            del found[index]
        case 1:
            found.append([_renamed(name, random), dtype, list(shape)])
        case 2:
            row[0] = _renamed(name, random)
        case 3:
            row[1] = random.choice(list(BITS))
        case 4 if shape:
            shape[random.randrange(len(shape))] = random.choice(NUMBERS)
        case 5:
            shape.insert(random.randrange(len(shape) + 1), random.choice((0, 1, 2, 2**40)))
        case 6 if shape:
            del shape[random.randrange(len(shape))]
        case 7:
            metadata[random.choice([*metadata, *KEYS])] = random.choice(TEXTS)
        case _:
            begin = name.split(".")[0]
            rows = [other for other in found if other[0].startswith(begin)]
            for other in rows:
                other[0] = random.choice(("unet.", "model.diffusion_model.", "", "x")) + other[0]


def _renamed(name: str, random: Random) -> str:
    """The name with another number in it, or without a part, or with a quantization's end."""
    numbers = list(re.finditer(r"\d+", name))
    parts = name.split(".")
    at = random.randrange(len(parts))
    before, after = parts[:at], parts[at + 1:]
    made = [".".join(before + after), ".".join(before + [parts[at]] * 2 + after), name + random.choice(ENDS)]
    if numbers:
        found = random.choice(numbers)
        made += [name[:found.start()] + str(random.choice(NUMBERS[:20])) + name[found.end():]] * 3
    return random.choice(made)


def _sound(found: list, metadata: dict, data: bytes) -> bytes:
    """A file of these tensors; one that would be too large has no values: it gets a dimension of 0."""
    listed: dict = {"__metadata__": {key: str(value) for key, value in metadata.items()}} if metadata else {}
    end = 0
    for name, dtype, shape in found:
        if end + math.prod(shape) * BITS[dtype] // 8 > MOST_DATA:
            shape.append(0)
        start, end = end, end + math.prod(shape) * BITS[dtype] // 8
        listed[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    made = json.dumps(listed).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(made)) + made + data[:end].ljust(end, b"\0")
