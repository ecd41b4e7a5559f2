"""The host's own loader of ControlNets, with errors that name the file."""

import logging
from pathlib import Path

import comfy.controlnet

from ....unet.weights.files import DAMAGED, SAFETENSORS, unpickled

LACKING = (LookupError, TypeError, AttributeError)  # what the host's loader ends with where it does not find what it needs


def load_hosts_controlnet(path: str):
    """The CONTROL_NET that the host makes of the file `path`, None where there is none in it.

    Raises UNetFileError where the file is pickled and cannot be read. The host reads tensors alone and runs no code from it.
    """
    try:
        return comfy.controlnet.load_controlnet(path)
    except DAMAGED as error:
        if Path(path).suffix.lower() not in SAFETENSORS and not isinstance(unpickled(Path(path), "meta"), dict):
            return None
        if not isinstance(error, LACKING):
            raise
        logging.warning("%s: the host's loader found no whole ControlNet: %s", Path(path).name, error)
        return None
