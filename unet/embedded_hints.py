"""Control images as a ControlNet's hint net embedded them, kept from call to call."""

from collections import OrderedDict
from collections.abc import Sequence

import torch

MOST = 2**30  # bytes that are kept; a call may need more, which then are


class EmbeddedHints:
    """Embedded images [c, h, w] by their keys, on the CPU: those used last."""

    def __init__(self, most: int = MOST):
        self.most = most
        self.bytes = 0
        self._rows: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._needed: frozenset[str] = frozenset()

    def need(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that are missing; the others stay until the next call of this."""
        self._needed = frozenset(keys)
        for key in self._needed & self._rows.keys():
            self._rows.move_to_end(key)
        return [key for key in dict.fromkeys(keys) if key not in self._rows]

    def put(self, key: str, row: torch.Tensor) -> None:
        if key in self._rows:
            return
        self._rows[key] = row.cpu()
        self.bytes += row.nbytes
        while self.bytes > self.most and (oldest := next(iter(self._rows))) not in self._needed:
            self.bytes -= self._rows.pop(oldest).nbytes

    def rows(self, keys: Sequence[str], device: torch.device) -> torch.Tensor:
        """[n, c, h, w] of these keys."""
        return torch.stack([self._rows[key] for key in keys]).to(device)
