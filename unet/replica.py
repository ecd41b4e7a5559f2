"""A network that answers calls of another process: what it is made of, its inputs and its results are arrays and plain values."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .arrays import Array, to_array, to_tensor
from .config import UNetConfig
from .controlnext import Joining, JoiningHooks
from .memory import activation_bytes
from .model import UNetModel
from .probes import only
from .residuals import Residuals
from .stored_layers import Stored, StoredLayers
from .weights.checkpoint import open_checkpoint
from .weights.errors import UNetFileError
from .weights.fingerprint import fingerprint

BUDGETS = (None, 512 * 2**20, 128 * 2**20, 32 * 2**20)  # bytes that a layer may work in on a card, tried in this order
ON_CPU = (32 * 2**20,)  # the fastest there
MARGIN = 1.2  # times what is counted: attention kernels and the allocator need more
PLENTY = 2  # without chunks so many times that must be free
PLACES = ("input", "middle", "output")  # of residuals


class Replica:
    """Holds one network at a time. `device` is where it computes.

    A network is begun, given what it lacks, and finished; a call names it by its key, and says so where it is not there.
    """

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.key: str | None = None
        self.network: UNetModel | None = None
        self._began: Mapping[str, Any] = {}

    def begin(self, spec: Mapping[str, Any]) -> bool:
        """Drops the network that was there and begins that of `spec`. True: its weights were read from a file that is here.

        `spec`: "key"; "config", the fields of a UNetConfig; "dtype" of the weights; "path" of a file and its "fingerprint", or
        None; "packed": do weights in GGUF's blocks stay so? "forms": what its layers take, as
        `probes.chosen` names them. Raises UNetFileError where another file has that path.
        """
        self.key = self.network = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        dtype = getattr(torch, spec["dtype"])
        network = UNetModel(UNetConfig(**spec["config"]), operations=StoredLayers, dtype=dtype, device="meta")
        found = spec["path"] is not None and os.access(spec["path"], os.R_OK)
        if found:
            self._read(network, Path(spec["path"]), spec, dtype)
        self.network, self._began = network, spec
        return found

    def put(self, weights: Mapping[str, Array]) -> None:
        """Takes weights of the network by their names, in place of what it has."""
        assert self.network is not None
        for name, array in weights.items():
            _put(self.network, name, to_tensor(array))

    def finish(self) -> None:
        """From now on the network is called; raises ValueError where weights are missing."""
        assert self.network is not None
        missing = [name for name, parameter in self.network.named_parameters() if parameter.is_meta]
        if missing:
            raise ValueError(f"{len(missing)} weights of the network were not sent ({missing[0]}, …).")
        self.network.eval().to(self.device)
        self.key = self._began["key"]

    def call(
        self, key: str, rows: Mapping[str, Array | None], residuals: Mapping[str, list], joins: Sequence[Mapping[str, Any]],
        frames: int,
    ) -> Array | None:
        """The prediction for `rows`, the tensors that `UNetModel.forward` takes by these names; None without the network `key`.

        `residuals`: of a ControlNet, by place. `joins`: features of ControlNeXts: "block", "feature" and "weights" as in `Joining`,
        "gains" of each video. `frames` of each video; videos run one after another.
        """
        if key != self.key:
            return None
        with torch.inference_mode(), only(self._began["forms"]):
            tensors: dict[str, Any] = {name: None if array is None else self._tensor(array) for name, array in rows.items()}
            added = {place: [None if r is None else self._tensor(r) for r in residuals.get(place, ())] for place in PLACES}
            count = tensors["x"].shape[0]
            each = frames if self._config.temporal else count
            videos = [slice(start, start + each) for start in range(0, count, each)]
            made = [
                self._call(_rows_of(tensors, video, count), _of(added, video, count), self._joining(joins, index), each)
                for index, video in enumerate(videos)
            ]
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

    @property
    def _config(self) -> UNetConfig:
        assert self.network is not None
        return self.network.config

    def _tensor(self, array: Array) -> torch.Tensor:
        tensor = to_tensor(array, self.device)
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def _call(self, rows, residuals, joining, frames):
        network, x = self.network, rows["x"]
        if not self._config.temporal:
            return network(**rows, num_frames=1, controls=Residuals(**residuals))
        for budget in self._budgets(x):
            hooks = JoiningHooks(joining)
            try:
                return network(**rows, num_frames=frames, controls=Residuals(**residuals), hooks=hooks, budget=budget)
            except torch.cuda.OutOfMemoryError as error:
                ran_out = error.with_traceback(None)
            torch.cuda.empty_cache()
        raise ran_out

    def _budgets(self, x):
        """What layers may work in, from the first that fits into free memory."""
        if x.device.type != "cuda":
            return ON_CPU
        free = torch.cuda.mem_get_info(x.device)[0] + torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
        t, _, h, w = x.shape
        needs = [MARGIN * activation_bytes(self._config, t, h, w, x.element_size(), budget) for budget in BUDGETS]
        needs[0] *= PLENTY
        first = next((index for index, need in enumerate(needs) if need <= free), len(BUDGETS) - 1)
        return BUDGETS[first:]

    def _read(self, network, path, spec, dtype):
        opened = open_checkpoint(path)
        here, there = fingerprint(opened.stamps), [tuple(file) for file in spec["fingerprint"]]
        if here != there:
            raise UNetFileError(
                f"{path}: this machine has another file under this name ({_sizes(here)}) than the one that sends calls "
                f"({_sizes(there)}). Copy the same file here, or remove this one: then the weights are sent."
            )
        for name, value in opened.state_dict(dtype, packed=spec["packed"]).items():
            _put(network, name, value)


def _put(network, name, value):
    layer, _, parameter = name.rpartition(".")
    holder = network.get_submodule(layer)
    if isinstance(holder, Stored):
        holder.put(parameter, value)
    else:
        setattr(holder, parameter, torch.nn.Parameter(value, requires_grad=False))


def _sizes(files):
    return ", ".join(f"{size:,} bytes, content {digest[:8]}" for _, size, digest in files)


def _rows_of(tensors, video, count):
    """The rows of one video; what has one row serves all."""
    return {name: value if value is None or value.shape[0] != count else value[video] for name, value in tensors.items()}


def _of(residuals, video, count):
    return {
        place: [None if r is None else r[video] if r.shape[0] == count else r for r in rs] for place, rs in residuals.items()
    }
