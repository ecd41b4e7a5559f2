"""One call of the network on a worker: sent to another where that one is late, and given up where all that have it are lost."""

import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from ....unet.arrays import Array
from ..node_names import RAY_POOL as NODE
from .pulse import Pulse
from .sent_controls import SentControl
from .shared_network import SharedNetwork
from .workers import POLL, Worker, Workers

LATE, SLACK = 3, 0.5  # a call is late after so many times the usual time, and so many seconds at least


@dataclass(frozen=True)
class Request:
    """A call of a network: the arguments of `Replica.call` after the key. Calls of one `size` take about the same time."""

    network: SharedNetwork
    args: tuple
    size: tuple
    controls: Sequence[SentControl] = ()  # whose networks and images the call names
    keep: Collection[str] = ()  # other networks, by their keys, that a worker goes on holding when it is given one


class Attempt:
    """A request at one worker, which is given the network first where it does not have it, and whatever else it says it lacks."""

    def __init__(self, workers: Workers, worker: Worker, request: Request):
        self.worker, self._workers, self._request = worker, workers, request
        self._steps = self._run()
        self._since = 0.0  # when the call itself was sent
        self._pulse = Pulse(workers.ray, worker.handle)
        self.ref = next(self._steps)

    def _run(self) -> Generator[Any, Any, Array]:
        worker, request = self.worker, self._request
        key = request.network.key
        lacking = [] if worker.key == key else [key]
        while True:
            yield from self._give(lacking)
            self._since = time.monotonic()
            made = yield worker.handle.call.remote(key, *request.args)
            if not isinstance(made, list):
                return made
            lacking, self._since = made, 0.0

    def _give(self, lacking: list[str]) -> Generator[Any, Any, None]:
        """Networks and control images by their keys."""
        worker, own, controls = self.worker, self._request.network, self._request.controls
        give = worker.handle
        networks = {network.key: network for network in (own, *(control.network for control in controls))}
        keep = [*networks, *self._request.keep]
        for key in filter(networks.__contains__, lacking):
            worker.key = None if key == own.key else worker.key
            read = yield give.begin.remote(networks[key].spec, keep)
            for piece in networks[key].pieces(read):
                yield give.put.remote(piece)
            yield give.finish.remote()
            worker.key = key if key == own.key else worker.key
        for control in controls:
            for piece in control.images(lacking):
                yield give.embed.remote(control.network.key, piece)

    def advance(self, done: bool) -> Array | None:
        """The result where it is there. Raises one of `Workers.lost`, or TimeoutError where the worker does not answer."""
        if not done:
            self._pulse.check(self._workers.timeout)
            return None
        self._pulse.note()
        try:
            self.ref = self._steps.send(self._workers.ray.get(self.ref))
        except StopIteration as end:
            self._workers.note_seconds(self._request.size, time.monotonic() - self._since)
            return end.value
        return None

    def late(self, usual: float | None) -> bool:
        out = time.monotonic() - self._since
        return bool(usual and self._since and out > max(LATE * usual, SLACK))


def answer(workers: Workers, worker: Worker, request: Request, check: Callable[[], None]) -> Array | None:
    """What `worker`, or another, makes of the request; None where all that had it are lost.

    `check` is called several times a second and raises what ends the wait. Raises RuntimeError with what went wrong on a worker.
    """
    attempts: list[Attempt] = []

    def send(worker):
        try:
            attempts.append(Attempt(workers, worker, request))
        except BaseException:  # of what is to be sent, as a file that was changed
            workers.give_back(worker)
            raise

    try:
        send(worker)
        while attempts:
            done, _ = workers.ray.wait([attempt.ref for attempt in attempts], timeout=POLL)
            check()
            for attempt in list(attempts):
                try:
                    made = attempt.advance(attempt.ref in done)
                except (*workers.lost, TimeoutError) as error:
                    attempts.remove(attempt)
                    workers.give_back(attempt.worker, lost=error)
                    continue
                except workers.ray.exceptions.RayTaskError as error:
                    attempts.remove(attempt)
                    workers.give_back(attempt.worker)
                    raise RuntimeError(f"{NODE}: {attempt.worker}: {error.cause}") from error
                if made is not None:
                    attempts.remove(attempt)
                    workers.give_back(attempt.worker)
                    return made
            if len(attempts) == 1 and attempts[0].late(workers.usual(request.size)):
                another = workers.take(request.network.key, only=True)
                if another is not None:
                    send(another)
        return None
    finally:
        for attempt in attempts:
            workers.give_back(attempt.worker, pending=attempt.ref)

