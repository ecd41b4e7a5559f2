"""The host's own loader of ControlNets, with errors that name the file."""

import logging
import pickle
import struct
from pathlib import Path

import comfy.controlnet
import torch

from ...unet.checkpoint import SAFETENSORS, unreadable_pickle

DAMAGED = (  # what reading a damaged pickle ends with: its bytes are instructions, and any of them may fail
    pickle.UnpicklingError, EOFError, RuntimeError, LookupError, TypeError, AttributeError, ValueError, struct.error,
    AssertionError,
)
LACKING = (LookupError, TypeError, AttributeError)  # what the host's loader ends with where it does not find what it needs


def load_hosts_controlnet(path: str):
    """The CONTROL_NET that the host makes of the file `path`, None where there is none in it.

    Raises UNetFileError where the file is pickled and cannot be read. The host reads tensors alone and runs no code from it.
    """
    try:
        return comfy.controlnet.load_controlnet(path)
    except DAMAGED as error:
        if Path(path).suffix.lower() not in SAFETENSORS and not isinstance(_unpickled(Path(path)), dict):
            return None
        if not isinstance(error, LACKING):
            raise
        logging.warning("%s: the host's loader found no whole ControlNet: %s", Path(path).name, error)
        return None


def _unpickled(path: Path):
    """What the file holds, with tensors that have shapes alone; raises UNetFileError where it cannot be read."""
    try:
        return torch.load(path, map_location="meta", weights_only=True)
    except DAMAGED as error:
        code = "Unsupported global" in str(error) or "Unsupported class" in str(error)
        reason = "it is damaged, or holds Python objects beside tensors" if code else "it is damaged or cut off"
        raise unreadable_pickle(path, reason) from None
