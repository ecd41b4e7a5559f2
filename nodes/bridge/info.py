"""What a loaded model is, in words."""

import logging

from ...unet import Checkpoint


def describe(checkpoint: Checkpoint, model) -> str:
    """Family, parameters, dtypes, file and memory of a MODEL that was loaded from `checkpoint`."""
    dtype, compute = model.model.get_dtype(), model.model.get_dtype_inference()
    computed = "" if compute == dtype else f", computed in {_short(compute)}"
    lines = [
        f"{checkpoint.family.title}",
        f"{checkpoint.parameters / 1e6:,.1f} M parameters, {_short(dtype)}{computed}",
        f"{checkpoint.path.name}, {checkpoint.path.stat().st_size / 2**20:,.1f} MiB",
        f"{model.model_size() / 2**20:,.1f} MiB in memory",
    ]
    if checkpoint.unexpected:
        some = ", ".join(checkpoint.unexpected[:3])
        lines.append(f"{len(checkpoint.unexpected)} tensors not used ({some}, …)")
        logging.warning("Load UNet: %s: %s", checkpoint.path.name, lines[-1])
    return "\n".join(lines)


def _short(dtype) -> str:
    return str(dtype).removeprefix("torch.")
