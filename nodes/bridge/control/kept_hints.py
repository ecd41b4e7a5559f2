"""What a ControlNet made of a clip's control images, kept by frame, so that no context window has it made again."""

import comfy.controlnet
import torch


class PreparesImages(comfy.controlnet.ControlBase):
    """A control that can prepare some of a clip's images by themselves, so that each is prepared once."""

    def prepare(self, images: torch.Tensor, size: torch.Size, device) -> torch.Tensor:
        """The rows that `cond_hint` has for these control images [n, c, h, w] at a latent of this size (height, width)."""
        raise NotImplementedError


class KeptHints:
    """The prepared images of a net of the host (`cond_hint`; a T2I-Adapter's residuals `control_input`), a row an image.

    The net itself keeps those of its last call. These lie on the CPU: all of a long clip's would fill a device.
    """

    def __init__(self, images: torch.Tensor):
        self.images = images
        self.made = {}  # by the latent's size: (tensors of all images, whether an image's rows are in them)

    def keep(self, net, numbers: list[int], size: torch.Size) -> None:
        """Takes over what `net` has made of the images with these numbers (its rows, once or again for each video)."""
        if net.cond_hint is None or self._has(numbers, size):
            return
        self._put([tensor[: len(numbers)] for tensor in _tensors(net)], numbers, size)

    def _put(self, tensors, numbers, size):
        if size not in self.made:
            room = [tensor.new_empty(len(self.images), *tensor.shape[1:], device="cpu") for tensor in tensors]
            self.made[size] = room, [False] * len(self.images)
        room, there = self.made[size]
        for all_rows, rows in zip(room, tensors):
            all_rows[numbers] = rows.cpu()
        for number in numbers:
            there[number] = True

    def give(self, net, numbers: list[int], size: torch.Size, videos: int, device) -> bool:
        """Puts what was made of these images back into `net`, for so many videos; False where some is not there."""
        missing = [number for number in dict.fromkeys(numbers) if not self._has([number], size)]
        if isinstance(net, PreparesImages) and 0 < len(missing) < len(numbers):  # all of them the net does by itself
            self._put([net.prepare(self.images[missing], size, device)], missing, size)
        elif missing:
            return False
        tensors = [rows[numbers].to(device) for rows in self.made[size][0]]
        net.cond_hint = tensors[0]
        if isinstance(net, comfy.controlnet.T2IAdapter):  # which, unlike the others, hands on the rows that it keeps
            features = iter(tensors[1:])
            net.control_input = {
                place: [None if old is None else next(features).repeat(videos, 1, 1, 1) for old in olds]
                for place, olds in net.control_input.items()
            }
        return True

    def _has(self, numbers, size):
        return size in self.made and all(self.made[size][1][number] for number in numbers)


def _tensors(net) -> list[torch.Tensor]:
    if not isinstance(net, comfy.controlnet.T2IAdapter):
        return [net.cond_hint]
    return [net.cond_hint, *(f for features in net.control_input.values() for f in features if f is not None)]
