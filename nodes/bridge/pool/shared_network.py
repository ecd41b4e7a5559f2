"""The network of a MODEL or a ControlNet as workers get it: from the file that it was loaded from, or weight by weight."""

import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary

import torch

from .... import unet
from ....unet import onednn, winograd
from ....unet.arrays import Array, to_array
from ....unet.probes import chosen
from ....unet.weights.fingerprint import fingerprint
from ....unet.weights.ggml_types import PackedTensor
from ....unet.weights.on_disk import FileStamp
from ..model.packed_weights import is_packed
from ..model.saved_weights import NETWORK, SavedNetwork, weight_of
from ..model.unet_loader import SOURCE

PIECE = 64 * 2**20  # bytes that are sent at once

_models: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()  # a name for each of the host's BaseModels, and ControlNets


class SharedNetwork:
    """A MODEL's network with the patches that it has now (LoRA, merging), which `key` names.

    A worker reads the file where it has the same one under the same path; the weights that patches change are sent then, else all.
    """

    def __init__(self, patcher):
        self._patcher = patcher
        self.key = f"{_models.setdefault(patcher.model, uuid.uuid4().hex)} {patcher.patches_uuid}"
        self._spec: dict[str, Any] | None = None
        on_cpu = patcher.load_device.type == "cpu"
        self._forms = chosen([*onednn.PROBES.values(), winograd.PROBE]) if on_cpu else []

    @property
    def spec(self) -> dict[str, Any]:
        """What `HeldNetworks.begin` takes. Raises UNetFileError where the network is none of the family."""
        if self._spec is None:
            path, found = None, None
            if (source := self._patcher.get_attachment(SOURCE)) is not None and _unchanged(source[1]):
                path, found = str(source[0]), fingerprint(source[1])
            self._spec = {
                "key": self.key, "dtype": str(self._dtype).removeprefix("torch."), "path": path, "fingerprint": found,
                "forms": self._forms, **self._described(),
            }
        return self._spec

    @property
    def latent_channels(self) -> int:
        return self._patcher.model.latent_format.latent_channels

    @property
    def _dtype(self) -> torch.dtype:
        return self._patcher.model.get_dtype()

    def _described(self) -> dict[str, Any]:
        network = self._patcher.model.diffusion_model
        own = isinstance(network, unet.UNetModel)
        config = network.config if own else SavedNetwork(self._patcher, {}).config
        return {"kind": "unet", "config": asdict(config), "packed": is_packed(network)}

    def _keys(self) -> dict[str, str]:
        """The network's own names of its weights to those in the patcher's model."""
        return {name: NETWORK + theirs for name, theirs in SavedNetwork(self._patcher, {}).names.items()}

    def pieces(self, read: bool) -> Iterator[dict[str, Array]]:
        """The weights to send to a worker that has read the file, or has not, some at a time."""
        sent = ((name, key) for name, key in self._keys().items() if not read or self._patcher.patches.get(key))
        return in_pieces((name, to_array(self._weight(name, key))) for name, key in sent)

    def _weight(self, name, key):
        """In the dtype that the MODEL computes with, as the host has it: in 8 bits a patch would be lost."""
        weight = weight_of(self._patcher, key)
        if isinstance(weight, PackedTensor) or name.endswith(".mix_factor"):
            return weight
        patched = bool(self._patcher.patches.get(key))
        return weight.to(self._computes_in if patched and self._dtype.itemsize == 1 else self._dtype)

    @property
    def _computes_in(self) -> torch.dtype:
        return self._patcher.model.get_dtype_inference()


class SharedControlNet(SharedNetwork):
    """The network of an SVD ControlNet, by the patcher around it."""

    @property
    def _dtype(self):
        return self._patcher.model.dtype

    def _described(self):
        return {"kind": "svd_controlnet", "config": asdict(self._patcher.model.control_config), "packed": False}

    def _keys(self):
        return {name: name for name, _ in self._patcher.model.named_parameters()}

    @property
    def _computes_in(self):
        return torch.float32


def in_pieces(arrays: Iterable[tuple[str, Array]]) -> Iterator[dict[str, Array]]:
    """These arrays by their names, PIECE bytes at a time."""
    piece: dict[str, Array] = {}
    size = 0
    for name, array in arrays:
        piece[name] = array
        size += array[0].nbytes
        if size >= PIECE:
            yield piece
            piece, size = {}, 0
    if piece:
        yield piece


def _unchanged(stamps) -> bool:
    """Are the files that a MODEL was loaded from what they were then?"""
    try:
        return all(FileStamp.of(os.stat(path)) == stamp for path, stamp in stamps.items())
    except OSError:
        return False
