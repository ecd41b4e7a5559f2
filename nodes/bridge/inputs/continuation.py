"""A video and the clip that goes on from it: their sizes, channels and frame rates."""

import logging

import comfy.utils
import torch
from comfy_api.latest import Input


def clip_size(node: str, video: torch.Tensor) -> tuple[int, int]:
    """(width, height) of the clip that goes on from `video` [n, h, w, 3]: its own, rounded down to multiples of 8, and logged.

    Raises ValueError, which names `node`, where a side is shorter than 8.
    """
    size, rounded = _size(video), _rounded(video)
    if 0 in rounded:
        raise ValueError(f"{node}: the video's frames are {_text(size)}, expected at least 8x8. Connect a larger video.")
    if size != rounded:
        logging.warning("%s: %s is no multiple of 8; the clip is made at %s.", node, _text(size), _text(rounded))
    return rounded


def fitted(node: str, clip: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """`clip` [t, h, w, 3] at the size of `video` [n, h, w, 3]: stretched where that is no multiple of 8, and logged.

    Raises ValueError, which names `node`, where the clip has not the size that `clip_size` gives for this video.
    """
    found, expected, rounded = _size(clip), _size(video), _rounded(video)
    if found == expected:
        return clip
    if found != rounded:
        or_rounded = "the same" if rounded == expected else f"the same or {_text(rounded)}"
        raise ValueError(
            f"{node}: the video's frames are {_text(expected)}, those of the continuation {_text(found)}, expected "
            f"{or_rounded}. Connect the clip that Continue Video made from this video."
        )
    logging.warning("%s: the continuation, %s, is stretched to the video's %s.", node, _text(found), _text(expected))
    return comfy.utils.common_upscale(clip.movedim(-1, 1), *expected, "bilinear", "disabled").movedim(1, -1)


def log_other_rate(node: str, video: torch.Tensor | Input.Video, fps: int) -> None:
    """A line in the log where `video` is a VIDEO with another frame rate than `fps`, which is the one that is used."""
    if isinstance(video, Input.Video) and (rate := float(video.get_frame_rate())) != fps:
        logging.info("%s: the video has %g frames a second, the clip is made for the %d of the input fps.", node, rate, fps)


def _size(images):
    return images.shape[2], images.shape[1]


def _rounded(images):
    return images.shape[2] // 8 * 8, images.shape[1] // 8 * 8


def _text(size):
    return f"{size[0]}x{size[1]}"
