"""The number of frames that a video model was trained on, and with it the length of its windows."""

import re
from collections.abc import Mapping

LONGEST = 25  # frames (SVD-XT's length): clips up to this length stay whole where the trained length is not known
FRAMES_KEY = "temporal_unet.num_frames"  # a patcher's attachment, and file metadata: the length a model was trained on


def trained_length(metadata: Mapping[str, str]) -> int | None:
    """The clip length (1 to 9999 frames) that a model was trained on, by its file's metadata; None where they hold no such one."""
    found = metadata.get(FRAMES_KEY, "")
    return int(found) if re.fullmatch("[1-9][0-9]{0,3}", found) else None


def window_length(trained: int | None, frames: int) -> int:
    """Frames of the window for a clip of `frames` frames: at most the trained length, or LONGEST where it is not known (None)."""
    return min(frames, trained or LONGEST)


def automatic_length(model, frames: int) -> int:
    """`window_length` for a MODEL."""
    return window_length(model.get_attachment(FRAMES_KEY), frames)
