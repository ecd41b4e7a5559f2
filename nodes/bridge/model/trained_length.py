"""The number of frames that a video model was trained on, and with it the length of its windows."""

import re

LONGEST = 25  # frames: clips up to this length stay whole where the trained length is not known (SVD-XT's)
FRAMES_KEY = "temporal_unet.num_frames"  # a patcher's attachment, and file metadata: the length a model was trained on


def trained_length(metadata: dict[str, str]) -> int | None:
    """The clip length that a model was trained on, where its file names one: 1 to 9999 frames, all else counts as none."""
    found = metadata.get(FRAMES_KEY, "")
    return int(found) if re.fullmatch("[1-9][0-9]{0,3}", found) else None


def window_length(trained: int | None, frames: int) -> int:
    """The window for a clip of `frames` frames: what the model was trained on, else as much of the clip as is usual."""
    return min(frames, trained or LONGEST)


def automatic_length(model, frames: int) -> int:
    """`window_length` for a MODEL."""
    return window_length(model.get_attachment(FRAMES_KEY), frames)
