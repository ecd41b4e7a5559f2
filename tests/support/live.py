"""Counts the bytes of the tensors that are alive while a function runs; on the meta device that needs no memory."""

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class _Live(TorchDispatchMode):
    """Follows every storage that an operation makes until it is freed; what comes from outside is left out."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()
        self.given = {}  # kept, so that their addresses are not used again for others

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self.known:
                self.given[storage._cdata] = storage
        out = function(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage._cdata not in self.given:
                self._follow(storage)
        return out

    def _follow(self, storage):
        if storage._cdata in self.known:
            return
        size = storage.nbytes()
        self.known.add(storage._cdata)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, storage._cdata, size)

    def _freed(self, pointer, size):
        self.known.discard(pointer)
        self.now -= size


def _storages(values):
    return [value.untyped_storage() for value in tree_iter(values) if isinstance(value, torch.Tensor)]


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes alive at one time of tensors that `function` makes (what it is given is not counted)."""
    with _Live() as live:
        function()
    return live.peak
