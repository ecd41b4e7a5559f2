"""Quicker forms of PyTorch's functions: each is tried once a process, and taken where it is right and quicker on this machine.

Forms add up in other orders. So where processes share out the calls of a network, one of them chooses for all (`chosen`, `only`),
and a result does not depend on which of them made it.
"""

import functools
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

EQUAL = 1e-5  # largest relative error, several times what another order of summation makes
ROUNDS = (5, 20)  # at least and at most: other processes' work hides what a form can do, for a while
PATIENCE = 2.0  # seconds, after which a form that has not shown itself quicker is left

_only: ContextVar[frozenset[str] | None] = ContextVar("only", default=None)


class Probe:
    """Asks whether `form`, by oneDNN, makes of tensors of `shapes` what `plain` does, in at most `share` of its time."""

    def __init__(self, form: Callable, plain: Callable, shapes: Sequence[tuple[int, ...]], share: float):
        self.form, self.plain, self.shapes, self.share = form, plain, shapes, share

    def pays(self) -> bool:
        """Whether this process takes the form; the first time it is tried, for milliseconds to tenths of a second."""
        names = _only.get()
        return self._quicker if names is None else self.form.__name__ in names and self._right

    @functools.cached_property
    def _right(self) -> bool:
        if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
            return False
        if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return False
        with torch.no_grad():
            args = self._args()
            try:
                made = self.form(*args)
            except (RuntimeError, TypeError, AttributeError):  # another version's operator: not there, or with other arguments
                return False
            expected = self.plain(*args)
            return made.shape == expected.shape and bool((made - expected).norm() <= EQUAL * expected.norm())

    @functools.cached_property
    def _quicker(self) -> bool:
        if not self._right:
            return False
        args = self._args()
        least, most = ROUNDS
        fastest = fastest_plain = math.inf
        until = time.perf_counter() + PATIENCE
        with torch.no_grad():
            for count in range(1, most + 1):
                fastest = min(fastest, _seconds(self.form, args))
                fastest_plain = min(fastest_plain, _seconds(self.plain, args))
                if count >= least and fastest <= self.share * fastest_plain:
                    return True
                if time.perf_counter() > until:
                    break
        return False

    def _args(self):
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) for shape in self.shapes]


def chosen(probes: Iterable[Probe]) -> list[str]:
    """The names of the forms that this process takes."""
    return [probe.form.__name__ for probe in probes if probe.pays()]


@contextmanager
def only(names: Iterable[str]) -> Iterator[None]:
    """Inside, the forms of these names are taken where they are right here, and no others, however quick."""
    token = _only.set(frozenset(names))
    try:
        yield
    finally:
        _only.reset(token)


def _seconds(function, args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start
