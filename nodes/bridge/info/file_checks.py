"""What the loaders' `validate_inputs` say of a chosen file before a run, so that the editor marks the node."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ....unet import UNetFileError, open_checkpoint
from ....unet.weights.lora_file import open_lora
from ....unet.weights.on_disk import Stamps, stamps_of
from ....unet.weights.shards import weight_files
from .file_info import look_at_controlnet
from .file_questions import QUESTIONS, NoAnswer
from .model_files import (
    checkpoint_names,
    checkpoint_path,
    controlnet_names,
    controlnet_path,
    lora_names,
    lora_path,
    quoted,
    unet_names,
    unet_path,
    valid_checkpoint_names,
    valid_unet_names,
)

MOST_LISTED = 20  # names in a message, as in the host's
SOUND: dict[tuple[Callable, str], Stamps] = {}  # what was looked at by which function and found good: not again while unchanged


@dataclass(frozen=True)
class Choice:
    """The input of a loader: names that it offers, names that it takes, a name to a path, and what looks at the file there."""

    folders: str
    offered: Callable[[], list[str]]
    valid: Callable[[], list[str]]
    path: Callable[[str], str]
    look: Callable[[str], object]


CHECKPOINT = Choice("models/checkpoints", checkpoint_names, valid_checkpoint_names, checkpoint_path, open_checkpoint)
UNET = Choice("models/diffusion_models or models/checkpoints", unet_names, valid_unet_names, unet_path, open_checkpoint)
CONTROLNET = Choice("models/controlnet", controlnet_names, controlnet_names, controlnet_path, look_at_controlnet)

LORA = Choice("models/loras", lora_names, lora_names, lora_path, open_lora)


async def check_checkpoint(name) -> bool | str:
    """True, or the text of the error that a run of Load Checkpoint would end with; None, which stands for a link, passes."""
    return await _check(name, CHECKPOINT)


async def check_unet(name) -> bool | str:
    """`check_checkpoint` for Load UNet."""
    return await _check(name, UNET)


async def check_controlnet(name) -> bool | str:
    """`check_checkpoint` for Load ControlNet."""
    return await _check(name, CONTROLNET)


async def check_lora(name) -> bool | str:
    """`check_checkpoint` for Load LoRA."""
    return await _check(name, LORA)


async def _check(name, choice: Choice) -> bool | str:
    if name is None:
        return True
    try:
        return await QUESTIONS.ask(f"{choice.valid.__name__} {name}", lambda: _answer(name, choice))
    except NoAnswer:
        return True  # the run waits for the disk


def _answer(name, choice: Choice) -> bool | str:
    if name not in choice.valid():
        names = choice.offered()
        listed = names if len(names) <= MOST_LISTED else f"(list of length {len(names)})"
        return (
            f"Value not in list: {quoted(name)} not in {listed}. Choose one of them, or put the file into {choice.folders} and "
            f"press R."
        )
    try:
        _look(choice.look, choice.path(name))
    except (UNetFileError, OSError) as error:
        return fault(name, error)
    return True


def _look(look: Callable, path: str) -> None:
    stamps = stamps_of(weight_files(Path(path)))
    if SOUND.get((look, path)) != stamps:
        look(path)
        SOUND[look, path] = stamps


def fault(name: str, error: UNetFileError | OSError) -> str:
    """The message about a file that cannot be used, from what looking at it raised."""
    if isinstance(error, UNetFileError):
        return str(error)
    reason = error.strerror or "it is not a regular file, or a link that leads nowhere"  # none where the host finds no file
    return f"{quoted(name)} cannot be read: {reason}. Correct this, or choose another file."
