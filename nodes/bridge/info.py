"""What a loaded model is, in words."""

import logging

from ...unet import Checkpoint
from .svd_control import SVDControl


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


def describe_controlnet(control, name: str) -> str:
    """What kind of ControlNet was loaded from the file `name`, and its size."""
    kind = "SVD ControlNet (residuals for every frame)" if isinstance(control, SVDControl) else type(control).__name__
    nets = [patcher.model for patcher in control.get_models()]
    parameters = sum(p.numel() for net in nets for p in net.parameters())
    return "\n".join([kind, f"{parameters / 1e6:,.1f} M parameters", name])


def _short(dtype) -> str:
    return str(dtype).removeprefix("torch.")
