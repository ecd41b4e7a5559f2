"""A network that answers calls of another process: what it is made of, its inputs and its results are arrays and plain values."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from .arrays import Array, to_array, to_tensor
from .asked_controls import AskedControls, Term, needed, rows_of
from .controlnet import SVDControlNet
from .controlnext import Joining, JoiningHooks
from .embedded_hints import EmbeddedHints
from .held_networks import HeldNetworks
from .memory import activation_bytes
from .model import UNetModel
from .probes import only
from .residuals import Residuals
from .within_memory import within_memory


class Replica:
    """Holds a UNet and its ControlNets. `device` is where it computes.

    A network is begun, given what it lacks, and finished; a call names it by its key, and says so where it is not there.
    """

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.networks = HeldNetworks(self.device)
        self.hints = EmbeddedHints()

    def begin(self, spec: Mapping[str, Any], keep: Collection[str] = ()) -> bool:
        """As `HeldNetworks.begin`."""
        return self.networks.begin(spec, keep)

    def put(self, weights: Mapping[str, Array]) -> None:
        self.networks.put(weights)

    def finish(self) -> None:
        self.networks.finish()

    def embed(self, key: str, images: Mapping[str, Array]) -> None:
        """Takes control images [3, 8h, 8w] in -1 to 1, by keys of their own, for calls of the ControlNet `key`."""
        net = self.networks[key]
        assert isinstance(net, SVDControlNet)
        with torch.inference_mode(), only(self.networks.forms(key)):
            for name, image in images.items():
                self.hints.put(name, net.embed_hint(self._tensor(image)[None])[0])

    def call(
        self, key: str, rows: Mapping[str, Array | None], controls: Sequence[Term], joins: Sequence[Mapping[str, Any]], frames: int
    ) -> Array | list[str]:
        """The prediction for `rows`, the tensors that `UNetModel.forward` takes by these names; or keys of what is not here.

        `controls`: what `AskedControls` adds up. `joins`: features of ControlNeXts: "block", "feature" and "weights" as in
        `Joining`, "gains" of each video. `frames` of each video; videos run one after another.
        """
        networks, hints = needed(controls)
        lacking = [*(name for name in (key, *networks) if name not in self.networks), *self.hints.need(hints)]
        if lacking:
            return lacking
        network = self.networks[key]
        assert isinstance(network, UNetModel)
        with torch.inference_mode(), only(self.networks.forms(key)):
            tensors = {name: None if array is None else self._tensor(array) for name, array in rows.items()}
            asked = AskedControls(controls, self.networks, self.hints)
            count = len(tensors["x"])  # type: ignore[arg-type]  # there always is one
            each = frames if network.config.temporal else count
            made = []
            for index, start in enumerate(range(0, count, each)):
                video = slice(start, start + each)
                mine = rows_of(tensors, video, count)
                made.append(_called(network, mine, asked.residuals(mine, video, count), self._joining(joins, index), each))
            return to_array(torch.cat(made))

    def _joining(self, joins, video):
        """What joins this video's activations."""
        return [
            Joining(
                join["block"], self._tensor(join["feature"]), join["gains"][video],
                None if join["weights"] is None else self._tensor(join["weights"]),
            )
            for join in joins
        ]

    def _tensor(self, array: Array) -> torch.Tensor:
        tensor = to_tensor(array, self.device)
        assert isinstance(tensor, torch.Tensor)
        return tensor


def _called(network, rows, residuals, joining, frames):
    if not network.config.temporal:
        return network(**rows, num_frames=1, controls=Residuals(**residuals))
    return within_memory(
        network.config, rows["x"], activation_bytes,
        lambda budget: network(
            **rows, num_frames=frames, controls=Residuals(**residuals), hooks=JoiningHooks(joining), budget=budget
        ),
    )
