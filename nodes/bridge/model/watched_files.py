"""Files that weights of a MODEL are mapped from: they must not change while it is in use."""

from collections.abc import Mapping
from pathlib import Path

from comfy.patcher_extension import WrappersMP

from ....unet import FileStamp, changed_in_place

KEY = "temporal_unet.file"


def watch_files(patcher, stamps: Mapping[Path, FileStamp]) -> None:
    """Refuses to sample after one of these files was written to: the weights have changed then, or are gone.

    It checks before the host loads the weights to the device, which reads them.
    """
    patcher.set_attachments(KEY, stamps)
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _check)


def _check(executor, patcher, *args, **kwargs):
    refuse_changed(patcher)
    return executor(patcher, *args, **kwargs)


def refuse_changed(patcher) -> None:
    """Raises ValueError where a file that weights of the MODEL are mapped from was written to since it was loaded."""
    changed = next((path for path, stamp in (patcher.get_attachment(KEY) or {}).items() if changed_in_place(path, stamp)), None)
    if changed is not None:
        raise ValueError(
            f"{changed.name} was written to after it was loaded, and its weights are read from it as they are needed. Wait "
            f"until it is whole, then load it again: Edit, Unload Models and Execution Cache."
        )
