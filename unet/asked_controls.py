"""What a call asks to be added to a UNet's skips and middle block: residuals, and what ControlNets that are held here make."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .arrays import to_tensor
from .controlnet import SVDControlNet
from .embedded_hints import EmbeddedHints
from .held_networks import HeldNetworks
from .memory import encoder_bytes
from .residuals import Placed, added
from .within_memory import within_memory

ROWS = ("x", "timesteps", "context", "y", "c_concat")  # of a UNet's call, which its ControlNets are given too
Term = Mapping[str, Any]


class AskedControls:
    """The terms of one call, which are added up in their order.

    A term is {"residuals": lists of arrays or None by place}, or asks for those of a ControlNet: {"network": its key; "hints": keys
    of a control image for each frame, or one for all; "rows": its arguments that are not those of the UNet; "strength"; "weights":
    of frames and pixels [t, 1, h, w], one for each size of residuals, [t, 1, 1, 1] for all sizes, or none}.
    """

    def __init__(self, terms: Sequence[Term], networks: HeldNetworks, hints: EmbeddedHints):
        self._networks, self._hints = networks, hints
        self._terms = [_on(networks.device, term) for term in terms]

    def residuals(self, rows: dict[str, torch.Tensor | None], video: slice, count: int) -> Placed:
        """By place, for the `rows` of one of the call's videos, which is these of its `count` rows."""
        total: Placed = {}
        for term in self._terms:
            if "network" in term:
                own = self._computed(term, {name: rows.get(name) for name in ROWS} | rows_of(term["rows"], video, count))
            else:
                own = {place: [rows_of({"": r}, video, count)[""] for r in rs] for place, rs in term["residuals"].items()}
            total = added(total, own) if total else own
        return total

    def _computed(self, term, rows) -> Placed:
        net = self._networks[term["network"]]
        assert isinstance(net, SVDControlNet)
        x = rows.pop("x")[:, : net.config.in_channels]
        hint = self._hints.rows(term["hints"], x.device).expand(len(x), -1, -1, -1)
        made = within_memory(
            net.config, x, encoder_bytes, lambda budget: net(x, hint, **rows, num_frames=len(x), budget=budget)
        )
        made = [_weighted(residual.mul_(term["strength"]), term["weights"]) for residual in made]
        return {"input": [], "middle": made[-1:], "output": made[:-1]}


def needed(terms: Sequence[Term]) -> tuple[list[str], list[str]]:
    """(keys of the networks, keys of the control images) that terms ask for."""
    asked = [term for term in terms if "network" in term]
    return list(dict.fromkeys(term["network"] for term in asked)), [hint for term in asked for hint in term["hints"]]


def rows_of(tensors: Mapping[str, torch.Tensor | None], video: slice, count: int) -> dict[str, torch.Tensor | None]:
    """The rows of one video; what has one row serves all."""
    return {name: value if value is None or value.shape[0] != count else value[video] for name, value in tensors.items()}


def _weighted(residual, weights):
    if not weights:
        return residual
    return residual * next(weight for weight in weights if weight.shape[2:] in (residual.shape[2:], (1, 1)))


def _on(device, value):
    """A term with its arrays as tensors."""
    if isinstance(value, Mapping):
        return {key: _on(device, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_on(device, one) for one in value]
    return to_tensor(value, device) if isinstance(value, tuple) else value
