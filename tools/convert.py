"""`dev.py convert`: writes the UNet of any file that Load UNet reads as one safetensors or GGUF file.

What is written is what Save UNet writes, by the same code. In memory is one tensor at a time, besides what is mapped from the file.
Arguments: the file to read, the file to write, its type, its dialect.
"""

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from unet import Checkpoint, UNetFileError, open_checkpoint
from unet.weights.detect import HEAD_CHANNELS, check_head_count
from unet.weights.errors import printable
from unet.weights.files import SAFETENSORS as SAFETENSORS_ENDINGS
from unet.weights.ggml_types import PackedTensor
from unet.weights.markers import MARKERS
from unet.weights.network_writer import FilePlan, take_name, written_part
from unet.weights.save_plan import GGUF, SAFETENSORS, TYPES, Network, PlannedTensor, Wanted
from unet.weights.scales import belonging, can_dequantize

CHUNK = 2**20  # numbers that are compared at once
PAUSE = 0.2  # seconds between two looks of the line of progress
# Playground v2.5's, the one model of the family that was trained so.
EDM = {"edm_mean": [-1.6574, 1.886, -1.383, 2.5155], "edm_std": [8.4927, 5.9022, 6.5498, 5.2299]}


class Source:
    """The UNet of an open file as it is to be written; raises UNetFileError where one file cannot hold all that it is."""

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        unread = next((name for name, weight in checkpoint.quantized.items() if not can_dequantize(weight)), None)
        if unread is not None:
            raise UNetFileError(
                f"{unread} is quantized as {checkpoint.quantized[unread].format}, which only ComfyUI's own layers dequantize. Load "
                f"it there with Load UNet, and write it with Save UNet."
            )
        shapes = {name: checkpoint.shapes[on_disk] for name, on_disk in checkpoint.names.items()} | checkpoint.reshaped
        formats = {name: checkpoint.dtypes[on_disk] for name, on_disk in checkpoint.names.items()}
        formats |= dict.fromkeys(checkpoint.quantized, "F32")  # to which those with scales are dequantized
        self.network = Network(shapes, formats, as_trained(checkpoint), {**checkpoint.metadata, **head_width(checkpoint)})

    def values(self, tensor: PlannedTensor) -> torch.Tensor | PackedTensor:
        """The values of a tensor of the file to be, mapped where they can be."""
        if tensor.name in self.network.markers:
            return self.network.markers[tensor.name]
        return values_of(self._checkpoint, tensor.name)


def values_of(checkpoint: Checkpoint, name: str) -> torch.Tensor | PackedTensor:
    """A tensor of a network, of all its own names this one."""
    return replace(checkpoint, names={name: checkpoint.names[name]}).state_dict(mapped=True, packed=True)[name]


def head_width(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata from which the width of attention heads is read again, which no shape tells."""
    config = checkpoint.config
    if config.num_heads:
        check_head_count(config.num_heads, checkpoint.family)
    return {HEAD_CHANNELS: str(config.head_channels)} if config.head_channels else {}


def as_trained(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors that say how it was trained: those of the file, or what the scheduler's config in its folder says instead."""
    markers = {name: checkpoint.tensor(name) for name in MARKERS if name in checkpoint.shapes}
    schedule = checkpoint.schedule
    if markers or schedule is None or checkpoint.config.temporal:  # SVD is always trained the same way
        return markers
    if schedule.edm:
        return {name: torch.tensor(values).reshape(1, 4, 1, 1) for name, values in EDM.items()}
    if schedule.prediction == "v_prediction":
        return {name: torch.tensor([]) for name in ("v_pred", *(["ztsnr"] if schedule.zero_snr else []))}
    if schedule.prediction != "epsilon":
        say(f"Warning: its scheduler_config.json says that it predicts {printable(schedule.prediction)}; no file alone says so.")
    return {}


def left_out(checkpoint: Checkpoint) -> list[str]:
    """The tensors of a file that are not its UNet's."""
    scales = belonging({checkpoint.names[name]: weight for name, weight in checkpoint.quantized.items()}, checkpoint.shapes)
    return [name for name in checkpoint.shapes if name not in {*checkpoint.names.values(), *MARKERS} | scales]


def wanted_for(target: Path, kind: str, dialect: str) -> Wanted:
    """The kind of file that is asked for, the container by its ending; raises UNetFileError where there is none."""
    ending = target.suffix.lower()
    if ending not in (".gguf", *SAFETENSORS_ENDINGS):
        raise UNetFileError(f"{target.name} ends in {ending or 'nothing'}, expected .safetensors or .gguf. Name it so.")
    known = {name.lower(): name for types in TYPES.values() for name in types}
    return Wanted(GGUF if ending == ".gguf" else SAFETENSORS, known.get(kind.lower(), kind.upper()), dialect)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, computed in chunks."""
    wrong = size = 0.0
    for ours, theirs in zip(found.reshape(-1).split(CHUNK), expected.reshape(-1).split(CHUNK), strict=True):
        theirs = theirs.float()
        wrong, size = wrong + (ours.float() - theirs).square().sum().item(), size + theirs.square().sum().item()
    return (wrong / size) ** 0.5 if size else float(wrong > 0)


def largest_error(source: Source, part: Path, plan: FilePlan, config) -> tuple[float, str]:
    """(the largest relative error of a tensor in a written file, its name).

    Raises UNetFileError where another network than this is detected in it.
    """
    written = open_checkpoint(part)
    if written.config != config:
        raise UNetFileError("another network would be detected in it. Write it with Save UNet, and report this file.")
    errors = {}
    for tensor in plan.tensors:
        if tensor.name in written.names:
            pair = values_of(written, tensor.name), source.values(tensor)
            errors[tensor.name] = relative_error(*(each.dequantize() if isinstance(each, PackedTensor) else each for each in pair))
    worst = max(errors, key=errors.__getitem__)
    return errors[worst], worst


def progress(total: int) -> Callable[[int], None]:
    """What shows how many of so many bytes are written, in one line of the terminal; nothing where the output is a file."""
    begun, shown = time.monotonic(), 0.0

    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if sys.stdout.isatty() and (now - shown > PAUSE or done == total):
            shown = now
            left = f"about {(now - begun) * (total / done - 1):.0f} s left" if done < total else "comparing"
            print(f"\r\x1b[K  {done / total:.0%} of {total / 1e9:.3g} GB, {left}", end="", flush=True)

    return show


def say(text: str) -> None:
    print(f"\r\x1b[K{text}" if sys.stdout.isatty() else text, flush=True)


def convert(path: Path, target: Path, kind: str, dialect: str) -> None:
    """Writes the UNet in `path` to `target`, which must not be there yet, and says what was done.

    Raises UNetFileError where it cannot be read or written so, OSError where the system does not let it be written.
    """
    begun, wanted = time.monotonic(), wanted_for(target, kind, dialect)
    if target.exists():
        raise FileExistsError(target)
    checkpoint = open_checkpoint(path)
    source = Source(checkpoint)
    plan = FilePlan(source.network, wanted)
    say(f"{path.name}: {checkpoint.family.title}, {len(checkpoint.names):,} tensors")
    others = left_out(checkpoint)
    if others:
        say(f"Only the UNet is converted. Left out: {len(others):,} other tensors, such as {printable(others[0])}.")
    if plan.left_out:
        say(f"Left out of the metadata, since too long for GGUF: {', '.join(map(printable, plan.left_out))}.")
    with written_part(target.parent, plan, source.values, progress(plan.size)) as part:
        error, worst = largest_error(source, part, plan, checkpoint.config)
        take_name(part, target)
    read = sum(stamp.size for stamp in checkpoint.stamps.values())
    formats = ", ".join(f"{count:,} {name}" for name, count in Counter(tensor.format for tensor in plan.tensors).most_common())
    say(f"{target.name}: {len(plan.tensors):,} tensors ({formats}), {read / 1e9:.3f} GB in, {plan.size / 1e9:.3f} GB out, "
        f"{time.monotonic() - begun:.1f} s")
    compared = f"largest relative error of a tensor: {error:.2g}, in {worst}" if error else "every value is exact"
    say(f"Read back equal to what was written; {compared}.")


def main(arguments: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `with` blocks remove what they began
    path, target, kind, dialect = arguments
    try:
        convert(Path(path), Path(target), kind, dialect)
    except UNetFileError as error:
        sys.exit(f"dev.py convert: {error}")
    except FileExistsError:
        sys.exit(f"dev.py convert: {target} is there already, and nothing is overwritten. Name another file.")
    except OSError as error:
        sys.exit(f"dev.py convert: {target} cannot be written ({error.strerror or error}). Free space, or name another folder.")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
