"""Residuals that are asked for and not computed yet: whoever calls the network may compute them where it runs."""

from collections import UserDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ....unet.residuals import Placed, added

ASKING = "temporal_unet.asking"  # in transformer_options: the network of this run takes `Asked` for residuals


@dataclass(frozen=True)
class ControlImages:
    """The control images for the frames of a call: `prepare` makes those of some indices ready for the network [n, c, 8h, 8w].

    `name`: of all the images that these indices are of, prepared for the same network at the same size.
    """

    name: str
    indices: list[int]
    prepare: Callable[[list[int]], torch.Tensor]


@dataclass(frozen=True)
class NetResiduals:
    """What one SVD ControlNet shall make of a call.

    `patcher` has its network. `rows`: its arguments besides the images, by name [b*t, …] (x: all that it joins). `weights` as
    `AskedControls` in `unet/` takes them.
    """

    patcher: Any
    images: ControlImages
    rows: dict[str, torch.Tensor]
    strength: float
    weights: list[torch.Tensor]


class Asked(UserDict):
    """The residuals of a chain by place: its terms in their order, of which each is a NetResiduals or residuals by place.

    Whoever looks into it has it computed here: `compute` gives what all terms make.
    """

    def __init__(self, terms: Iterable[NetResiduals | Placed], compute: Callable[[], Placed]):
        self._terms, self._compute = tuple(terms), compute

    @cached_property
    def data(self) -> Placed:  # type: ignore[override]  # where a UserDict has its items
        return self._compute()

    @property
    def terms(self) -> tuple[NetResiduals | Placed, ...]:
        """As they were asked for, or what was computed where somebody looked, who may have changed it."""
        return (self.data,) if "data" in vars(self) else self._terms

    def now(self) -> Placed:
        """What all terms make; it is not kept here, but where somebody looked."""
        return self.data if "data" in vars(self) else self._compute()


def terms_of(control: "Asked | Placed | None") -> tuple[NetResiduals | Placed, ...]:
    """What residuals in the host's form are the sum of."""
    if control is None:
        return ()
    return control.terms if isinstance(control, Asked) else (control,)


def together(first: "Asked | Placed", second: "Asked | Placed"):
    """The sum of two controls."""
    if isinstance(first, Asked) or isinstance(second, Asked):
        return Asked((*terms_of(first), *terms_of(second)), lambda: added(computed(first), computed(second)))
    return added(first, second)


def computed(control: "Asked | Placed"):
    """Residuals by place."""
    return control.now() if isinstance(control, Asked) else control
