"""Functions of the host's UNet module in whose place packs put their own: ours calls those, since packs count on it."""

from collections.abc import Callable
from types import FunctionType

import torch
from comfy.ldm.modules.diffusionmodules import openaimodel

from ....unet import Residuals


def of_a_pack(name: str) -> Callable | None:
    """The function of this name in the host's UNet module where a pack put it there, None where it is the host's own."""
    function = getattr(openaimodel, name)
    own = isinstance(function, FunctionType) and function.__code__.co_filename == openaimodel.__file__
    return None if own else function


class HostResiduals(Residuals):
    """The host's residuals of one call, which a pack may add in its own way (RAUNet resizes them).

    Its function gets what the host would give it: the activations, which it may write to, and the lists that it takes from.
    """

    def add(self, place: str, h: torch.Tensor) -> torch.Tensor:
        theirs = of_a_pack("apply_control")
        return super().add(place, h) if theirs is None else theirs(h.clone(), self.waiting, place)
