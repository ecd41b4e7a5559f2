"""Frames and masks, from what nodes get to the shapes that are computed with."""

import logging
from collections.abc import Callable
from pathlib import Path

import av
import torch
from comfy_api.latest import Input, InputImpl

START = 0.25  # seconds of a video's file that are decoded for its first frame


def frames_in(node: str, name: str, value: torch.Tensor | Input.Video) -> torch.Tensor:
    """The frames of a VIDEO or of an IMAGE [n, h, w, c] of one (gray), three or four channels (alpha is left out): [n, h, w, 3].

    Raises ValueError, which names node and input, where it holds none, or where the file of a video cannot be read.
    """
    images = _decoded(node, name, value.get_components) if isinstance(value, Input.Video) else value
    if images.ndim != 4 or 0 in images.shape or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{node}: {name} has shape {list(images.shape)}, expected [images, height, width, 3] with at least one image. "
            f"Connect a node that gives images or a video."
        )
    if images.shape[-1] == 1:
        images = images.expand(-1, -1, -1, 3)
    return images[..., :3]


def first_frame(node: str, name: str, value: torch.Tensor | Input.Video) -> torch.Tensor:
    """The first of `frames_in` as [1, h, w, 3]; a line in the log where there are more.

    Of a file only the start is decoded, since all frames of a film may not fit into memory; the whole of it where there is no
    frame so soon.
    """
    if isinstance(value, InputImpl.VideoFromFile):
        start = _decoded(node, name, lambda: value.as_trimmed(0, START, strict_duration=False).get_components())
        logging.info("%s: %s is a video; its first frame is used.", node, name)
        return frames_in(node, name, start if len(start) else value)[:1]
    images = frames_in(node, name, value)
    if len(images) > 1:
        logging.warning(
            "%s: %s holds %d images; the first is used. For a clip of each, put Rebatch Images with batch_size 1 before it.",
            node, name, len(images),
        )
    return images[:1]


def _decoded(node: str, name: str, get_components: Callable) -> torch.Tensor:
    try:
        return get_components().images
    except av.FFmpegError as error:
        reason = f"{Path(error.filename).name}: {error.strerror}" if error.filename else error.strerror
    except ValueError as error:  # no video in it, only sound
        reason = str(error)
    raise ValueError(f"{node}: {name} is a video that cannot be read ({reason}). Choose another file, or get it again.")


def control_images(node: str, image: torch.Tensor | Input.Video) -> torch.Tensor:
    """An IMAGE or VIDEO as [n, 3, h, w]. Raises ValueError, which names the node, where it holds no image."""
    return frames_in(node, "image", image).movedim(-1, 1)


def control_masks(node: str, mask: torch.Tensor) -> torch.Tensor:
    """A MASK [n, h, w], or as some nodes give it [h, w] or [n, 1, h, w], as [n, h, w].

    Raises ValueError, which names the node, where it holds none.
    """
    if mask.ndim < 2 or 0 in mask.shape:
        raise ValueError(
            f"{node}: mask has shape {list(mask.shape)}, expected [masks, height, width] with at least one mask. Connect a node "
            f"that gives masks, or none."
        )
    return mask.reshape(-1, *mask.shape[-2:])
