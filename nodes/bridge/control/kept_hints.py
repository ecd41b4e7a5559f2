"""The control images of a clip as a ControlNet prepared them, kept by frame for the context windows that follow."""

import comfy.controlnet
import torch

from ....unet.chunks import memory_format


class PreparesImages(comfy.controlnet.ControlBase):
    """A control that can prepare some of a clip's images by themselves, so that each is prepared once."""

    def prepare(self, images: torch.Tensor, size: torch.Size, device) -> torch.Tensor:
        """The rows that `cond_hint` has for these control images [n, c, h, w] at a latent of this size (height, width)."""
        raise NotImplementedError


class KeptHints:
    """The prepared images of a net of the host (`cond_hint`; a T2I-Adapter's residuals `control_input`), one row per image.

    images [n, c, h, w]. The net itself keeps those of its last call. These lie on the CPU: all of a long clip's would fill a
    device.
    """

    def __init__(self, images: torch.Tensor):
        self.images = images
        # By the latent's size: (tensors of all images, whether an image's rows are in them).
        self.made: dict[torch.Size, tuple[list[torch.Tensor], list[bool]]] = {}

    def keep(self, net, indices: list[int], size: torch.Size) -> None:
        """Keeps what `net` made of the images with these indices; of its rows, which may repeat for each video, the first."""
        if net.cond_hint is None or self._has(indices, size):
            return
        self._put([tensor[: len(indices)] for tensor in _tensors(net)], indices, size)

    def _put(self, tensors, indices, size):
        if size not in self.made:  # in the same layout: convolutions of another differ in their last bits
            room = [
                torch.empty(len(self.images), *tensor.shape[1:], dtype=tensor.dtype, memory_format=memory_format(tensor))
                for tensor in tensors
            ]
            self.made[size] = room, [False] * len(self.images)
        room, there = self.made[size]
        for all_rows, rows in zip(room, tensors, strict=True):
            all_rows[indices] = rows.cpu()
        for index in indices:
            there[index] = True

    def give(self, net, indices: list[int], size: torch.Size, videos: int, device) -> bool:
        """Puts what was made of these images back into `net`, for `videos` videos; False where some of it is missing."""
        missing = [index for index in dict.fromkeys(indices) if not self._has([index], size)]
        if isinstance(net, PreparesImages) and 0 < len(missing) < len(indices):  # all of them the net does by itself
            self._put([net.prepare(self.images[missing], size, device)], missing, size)
        elif missing:
            return False
        tensors = [rows[indices].contiguous(memory_format=memory_format(rows)).to(device) for rows in self.made[size][0]]
        net.cond_hint = tensors[0]
        if isinstance(net, comfy.controlnet.T2IAdapter):  # unlike the others, it returns the rows that it keeps
            features = iter(tensors[1:])
            net.control_input = {
                place: [None if old is None else next(features).repeat(videos, 1, 1, 1) for old in olds]
                for place, olds in net.control_input.items()
            }
        return True

    def _has(self, indices, size):
        return size in self.made and all(self.made[size][1][index] for index in indices)


def _tensors(net) -> list[torch.Tensor]:
    if not isinstance(net, comfy.controlnet.T2IAdapter):
        return [net.cond_hint]
    return [net.cond_hint, *(f for features in net.control_input.values() for f in features if f is not None)]
