"""Code that packs put into a network in memory, or in the place of functions of the host's UNet module: ours calls those."""

from collections.abc import Callable
from types import FunctionType

import torch
from comfy.ldm.modules.diffusionmodules import openaimodel

from ....unet import Residuals
from ....unet.hooks import is_watched
from ....unet.quick_conv import has_other_padding


def of_a_pack(name: str) -> Callable | None:
    """The function of this name in the host's UNet module where a pack put it there, None where it is the host's own."""
    function = getattr(openaimodel, name)
    own = isinstance(function, FunctionType) and function.__code__.co_filename == openaimodel.__file__
    return None if own else function


def changed_layers(network: torch.nn.Module) -> list[str]:
    """The classes of a network's layers that run other or more code than theirs: another forward, a hook, images that tile."""
    return sorted({
        type(module).__name__ for module in network.modules()
        if is_watched(module) or isinstance(module, torch.nn.Conv2d) and has_other_padding(module)
    })


class HostResiduals(Residuals):
    """The host's residuals of one call, which a pack may add in its own way (RAUNet resizes them).

    Its function gets what the host would give it: the activations, which it may write to, and the lists that it takes from.
    """

    def add(self, place: str, h: torch.Tensor) -> torch.Tensor:
        theirs = of_a_pack("apply_control")
        return super().add(place, h) if theirs is None else theirs(h.clone(), self.waiting, place)
