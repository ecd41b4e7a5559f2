"""Control images and masks, from the shapes that nodes get to the one that controls take."""

import torch


def control_images(node: str, image: torch.Tensor) -> torch.Tensor:
    """An IMAGE [n, h, w, c] of one (gray), three or four channels (alpha is left out) as [n, 3, h, w].

    Raises ValueError, which names the node, where it holds none.
    """
    if image.ndim != 4 or 0 in image.shape or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{node}: image has shape {list(image.shape)}, expected [images, height, width, 3] with at least one image. Connect "
            f"a node that gives images."
        )
    if image.shape[-1] == 1:
        image = image.expand(-1, -1, -1, 3)
    return image[..., :3].movedim(-1, 1)


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
