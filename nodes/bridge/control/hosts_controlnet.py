"""The host's own loader of ControlNets."""

import logging
from pathlib import Path

import comfy.controlnet

from ....unet.weights.files import open_any, shapes_of

INCOMPLETE = (LookupError, TypeError, AttributeError)  # how the host's loader ends where a tensor that it looks for is missing


def load_hosts_controlnet(path: str):
    """The CONTROL_NET that the host makes of the file `path`, None where it finds none in it.

    Raises UNetFileError where the file cannot be read, and the host's own error where the tensors of a ControlNet do not fit. The
    host reads tensors alone and runs no code from the file.
    """
    if not shapes_of(open_any(Path(path))):  # a pickled file may hold anything, on which the host's loader ends in its own ways
        return None
    try:
        return comfy.controlnet.load_controlnet(path)
    except INCOMPLETE as error:
        logging.warning("%s: the host's loader found no complete ControlNet: %s", Path(path).name, error)
        return None
