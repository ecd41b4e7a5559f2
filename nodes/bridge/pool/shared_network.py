"""The network of a MODEL as workers get it: from the file that it was loaded from, or weight by weight."""

import os
import uuid
from collections.abc import Iterator
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

PIECE = 64 * 2**20  # bytes of weights that are sent at once

_models: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()  # a name for each of the host's BaseModels


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
        """What `Replica.begin` takes. Raises UNetFileError where the network is none of the family."""
        if self._spec is None:
            model, path, found = self._patcher.model, None, None
            if (source := self._patcher.get_attachment(SOURCE)) is not None and _unchanged(source[1]):
                path, found = str(source[0]), fingerprint(source[1])
            own = isinstance(model.diffusion_model, unet.UNetModel)
            config = model.diffusion_model.config if own else SavedNetwork(self._patcher, {}).config
            self._spec = {
                "key": self.key, "config": asdict(config), "dtype": str(model.get_dtype()).removeprefix("torch."),
                "path": path, "fingerprint": found, "packed": is_packed(model.diffusion_model),
                "forms": self._forms,
            }
        return self._spec

    def pieces(self, read: bool) -> Iterator[dict[str, Array]]:
        """The weights to send to a worker that has read the file, or has not, some at a time."""
        piece: dict[str, Array] = {}
        size = 0
        for name, theirs in SavedNetwork(self._patcher, {}).names.items():
            key = NETWORK + theirs
            if read and not self._patcher.patches.get(key):
                continue
            piece[name] = to_array(self._weight(name, key))
            size += piece[name][0].nbytes
            if size >= PIECE:
                yield piece
                piece, size = {}, 0
        if piece:
            yield piece

    def _weight(self, name, key):
        """In the dtype that the MODEL computes with, as the host has it: in 8 bits a patch would be lost."""
        weight = weight_of(self._patcher, key)
        if isinstance(weight, PackedTensor) or name.endswith(".mix_factor"):
            return weight
        model = self._patcher.model
        patched = bool(self._patcher.patches.get(key))
        dtype = model.get_dtype()
        return weight.to(model.get_dtype_inference() if patched and dtype.itemsize == 1 else dtype)


def _unchanged(stamps) -> bool:
    """Are the files that a MODEL was loaded from what they were then?"""
    try:
        return all(FileStamp.of(os.stat(path)) == stamp for path, stamp in stamps.items())
    except OSError:
        return False
