"""The controls of a call as workers get them: what they can compute they are told, the rest is computed here and sent."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ....unet.arrays import Array, to_array
from ....unet.controlnext import standardized
from ....unet.residuals import PLACES
from ..control.asked import Asked, ControlImages, NetResiduals, terms_of
from ..control.controlnext_control import AFTER_SKIP
from .shared_network import SharedControlNet, in_pieces


@dataclass(frozen=True)
class SentControl:
    """A ControlNet that a call names: its network, and the images that it is given."""

    network: SharedControlNet
    asked: ControlImages

    @property
    def keys(self) -> list[str]:
        """Of the images."""
        return [self._key(index) for index in self.asked.indices]

    def _key(self, index):
        return f"{self.network.key} {self.asked.name} {index}"

    def images(self, keys: Collection[str]) -> Iterator[dict[str, Array]]:
        """Those of these keys, some at a time."""
        indices = [index for index in dict.fromkeys(self.asked.indices) if self._key(index) in keys]
        return in_pieces((self._key(index), to_array(self.asked.prepare([index])[0])) for index in indices)


def sent(control: Asked | dict | None, rows: dict) -> tuple[list[SentControl], list[dict[str, Any]]]:
    """(the ControlNets that a worker runs, the terms that `AskedControls` takes); `rows` of the UNet's call, as tensors."""
    controls, terms = [], []
    for term in terms_of(control):
        if isinstance(term, NetResiduals):
            one = SentControl(SharedControlNet(term.patcher), term.images)
            controls.append(one)
            terms.append({
                "network": one.network.key, "hints": one.keys, "strength": term.strength,
                "rows": {name: to_array(row) for name, row in term.rows.items() if not _same(row, rows[name])},
                "weights": [to_array(weight) for weight in term.weights],
            })
        else:
            terms.append({"residuals": {place: [as_array(residual) for residual in term.get(place, ())] for place in PLACES}})
    return controls, terms


def joins(options: dict, x: torch.Tensor) -> list[dict[str, Any]]:
    """The features that ControlNeXts left in a call's options, as `Replica.call` takes them; x [b*t, c, h, w]."""
    return [
        {
            "block": patch.block, "feature": to_array(standardized(patch.feature.to(x), patch.size)),
            "gains": patch.gains_of(options["cond_or_uncond"]), "weights": as_array(patch.weights_at(x, patch.size)),
        }
        for patch in options.get("patches", {}).get(AFTER_SKIP, ())
    ]


def apart(x: torch.Tensor, channels: int) -> dict[str, torch.Tensor | None]:
    """The network's x [b*t, c, h, w] as the latent of so many channels, and one row of what is joined to it where all are one."""
    joined = x[:, channels:]
    if not joined.shape[1] or not torch.equal(joined, joined[:1].expand_as(joined)):
        return {"x": x, "c_concat": None}
    return {"x": x[:, :channels], "c_concat": joined[:1]}


def as_array(value: torch.Tensor | None) -> Array | None:
    return None if value is None else to_array(value)


def _same(row, of_unet):
    """Is it what the UNet is given? Of x, what is joined to the latent may be left out."""
    if of_unet is None or row.dtype != of_unet.dtype:
        return False
    return torch.equal(row, of_unet[:, : row.shape[1]] if row.ndim == 4 else of_unet)
