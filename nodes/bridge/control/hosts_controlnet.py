"""The host's own loader of ControlNets."""

import logging
from pathlib import Path

import comfy.controlnet

from ....unet.weights.files import is_as_it_ends, open_any, shapes_of

INCOMPLETE = (LookupError, TypeError, AttributeError)  # how the host's loader ends where a tensor that it looks for is missing


def load_hosts_controlnet(path: str):
    """The CONTROL_NET that the host makes of the file `path`, None where it finds none in it.

    Raises UNetFileError where the file cannot be read, and the host's own error where the tensors of a ControlNet do not fit. The
    host reads tensors alone and runs no code from the file.
    """
    file = Path(path)
    opened = open_any(file)
    if not shapes_of(opened):  # a pickled file may hold anything, on which the host's loader ends in its own ways
        return None
    try:
        if is_as_it_ends(file, opened):
            return comfy.controlnet.load_controlnet(path)
        return _load_renamed(file, opened)
    except INCOMPLETE as error:
        logging.warning("%s: the host's loader found no complete ControlNet: %s", file.name, error)
        return None


def _load_renamed(file: Path, opened):
    """Of shards, or of a file whose ending, by which the host's loader goes, is that of another kind."""
    tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    options = {"global_average_pooling": True} if file.stem.endswith(("_shuffle", "_shuffle_fp16")) else {}
    return comfy.controlnet.load_controlnet_state_dict(tensors, model_options=options)
