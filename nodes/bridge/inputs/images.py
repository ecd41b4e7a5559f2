"""Frames and masks, from what nodes get to the shapes that are computed with."""

from pathlib import Path

import av
import torch
from comfy_api.latest import Input


def frames_in(node: str, name: str, value: torch.Tensor | Input.Video) -> torch.Tensor:
    """The frames of a VIDEO or of an IMAGE [n, h, w, c] of one (gray), three or four channels (alpha is left out): [n, h, w, 3].

    Raises ValueError, which names node and input, where it holds none, or where the file of a video cannot be read.
    """
    images = _decoded(node, name, value) if isinstance(value, Input.Video) else value
    if images.ndim != 4 or 0 in images.shape or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{node}: {name} has shape {list(images.shape)}, expected [images, height, width, 3] with at least one image. "
            f"Connect a node that gives images or a video."
        )
    if images.shape[-1] == 1:
        images = images.expand(-1, -1, -1, 3)
    return images[..., :3]


def _decoded(node, name, video):
    try:
        return video.get_components().images
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
