"""What the loaders' `validate_inputs` say of a chosen file before a run, so that the editor marks the node."""

from collections.abc import Callable
from pathlib import Path

from ....unet import FileStamp, UNetFileError, open_checkpoint
from .file_info import look_at_controlnet
from .file_questions import QUESTIONS, NoAnswer
from .model_files import (
    checkpoint_names,
    checkpoint_path,
    controlnet_names,
    controlnet_path,
    quoted,
    unet_names,
    unet_path,
    valid_unet_names,
)

MOST_LISTED = 20  # names in a message, as in the host's
SOUND: dict[tuple[Callable, str], FileStamp] = {}  # what was looked at by which function and found good: not again while unchanged


async def check_checkpoint(name) -> bool | str:
    """True, or the text of the error that a run of Load Checkpoint would end with; None, which stands for a link, passes."""
    return await _check(name, checkpoint_names, checkpoint_names, lambda name: _look(open_checkpoint, checkpoint_path(name)))


async def check_unet(name) -> bool | str:
    """`check_checkpoint` for Load UNet."""
    return await _check(name, unet_names, valid_unet_names, lambda name: _look(open_checkpoint, unet_path(name)))


async def check_controlnet(name) -> bool | str:
    """`check_checkpoint` for Load ControlNet."""
    return await _check(name, controlnet_names, controlnet_names, lambda name: _look(look_at_controlnet, controlnet_path(name)))


async def _check(name, offered: Callable, valid: Callable, look: Callable) -> bool | str:
    if name is None:
        return True
    try:
        return await QUESTIONS.ask(f"{valid.__name__} {name}", lambda: _answer(name, offered, valid, look))
    except NoAnswer:
        return True  # the run waits for the disk


def _answer(name, offered, valid, look) -> bool | str:
    if name not in valid():
        names = offered()
        listed = names if len(names) <= MOST_LISTED else f"(list of length {len(names)})"
        return f"Value not in list: {quoted(name)} not in {listed}. Choose one of them, or put the file there and press R."
    try:
        look(name)
    except (UNetFileError, OSError) as error:
        return fault(name, error)
    return True


def _look(look: Callable, path: str) -> None:
    stamp = FileStamp.of(Path(path).stat())
    if SOUND.get((look, path)) != stamp:
        look(path)
        SOUND[look, path] = stamp


def fault(name: str, error: UNetFileError | OSError) -> str:
    """The message about a file that cannot be used, from what looking at it raised."""
    if isinstance(error, UNetFileError):
        return str(error)
    reason = error.strerror or "it is not a regular file, or a link that leads nowhere"  # none where the host finds no file
    return f"{quoted(name)} cannot be read: {reason}. Correct this, or choose another file."
