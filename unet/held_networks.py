"""Networks that another process has sent, or named by their files: each is begun, given what it lacks, and finished."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .arrays import Array, to_tensor
from .config import UNetConfig
from .controlnet import ControlNetConfig, SVDControlNet
from .encoder import Encoder
from .model import UNetModel
from .stored_layers import Stored, StoredLayers
from .weights.checkpoint import open_checkpoint, open_controlnet
from .weights.errors import UNetFileError
from .weights.fingerprint import fingerprint


@dataclass(frozen=True)
class _Kind:
    network: Any  # the class
    config: Any  # from its fields
    open: Any  # a file


def _controlnet_config(encoder, **more):
    return ControlNetConfig(UNetConfig(**encoder), **more)


KINDS = {
    "unet": _Kind(UNetModel, UNetConfig, open_checkpoint),
    "svd_controlnet": _Kind(SVDControlNet, _controlnet_config, open_controlnet),
}


class HeldNetworks:
    """Finished networks by their keys, on `device`."""

    def __init__(self, device: torch.device):
        self.device = device
        self._held: dict[str, tuple[Encoder, list[str]]] = {}
        self._begun: Any = None  # a network
        self._spec: Mapping[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def __getitem__(self, key: str) -> Encoder:
        return self._held[key][0]

    def forms(self, key: str) -> list[str]:
        """What the layers of this network take."""
        return self._held[key][1]

    def begin(self, spec: Mapping[str, Any], keep: Collection[str]) -> bool:
        """Drops all networks but those of `keep` and begins that of `spec`. True: its weights were read from a file that is here.

        `spec`: "key"; "kind", one of KINDS; "config", the fields of its config; "dtype" of the weights; "path" of a file and its
        "fingerprint", or None; "packed": do weights in GGUF's blocks stay so? "forms": what its layers take, as `probes.chosen`
        names them. Raises UNetFileError where that path is of another file.
        """
        self._held = {key: held for key, held in self._held.items() if key in keep and key != spec["key"]}
        self._begun = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        kind, dtype = KINDS[spec["kind"]], getattr(torch, spec["dtype"])
        network = kind.network(kind.config(**spec["config"]), operations=StoredLayers, dtype=dtype, device="meta")
        found = spec["path"] is not None and os.access(spec["path"], os.R_OK)
        if found:
            for name, value in _read(kind.open(Path(spec["path"])), spec, dtype).items():
                _put(network, name, value)
        self._begun, self._spec = network, spec
        return found

    def put(self, weights: Mapping[str, Array]) -> None:
        """Takes weights of the network that was begun by their names, in place of what it has."""
        for name, array in weights.items():
            _put(self._begun, name, to_tensor(array))

    def finish(self) -> None:
        """From now on that network is there; raises ValueError where weights are missing."""
        missing = [name for name, parameter in self._begun.named_parameters() if parameter.is_meta]
        if missing:
            raise ValueError(f"{len(missing)} weights of the network were not sent ({missing[0]}, …).")
        self._held[self._spec["key"]] = self._begun.eval().to(self.device), self._spec["forms"]
        self._begun = None


def _read(opened, spec, dtype):
    here, there = fingerprint(opened.stamps), [tuple(file) for file in spec["fingerprint"]]
    if here != there:
        raise UNetFileError(
            f"{spec['path']}: this machine has another file under this name ({_sizes(here)}) than the one that sends calls "
            f"({_sizes(there)}). Copy the same file here, or remove this one: then the weights are sent."
        )
    return opened.state_dict(dtype, packed=spec["packed"])


def _put(network, name, value):
    layer, _, parameter = name.rpartition(".")
    holder = network.get_submodule(layer)
    if isinstance(holder, Stored):
        holder.put(parameter, value)
    else:
        setattr(holder, parameter, torch.nn.Parameter(value, requires_grad=False))


def _sizes(files):
    return ", ".join(f"{size:,} bytes, content {digest[:8]}" for _, size, digest in files)
