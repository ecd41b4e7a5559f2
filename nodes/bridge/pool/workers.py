"""Ray's actors, each with a network: which are idle, which were lost and may come back."""

import statistics
import threading
import time
from collections import deque
from typing import Any

import comfy.model_management as management

from ..node_names import RAY_POOL as NODE
from . import worker as worker_module
from .cluster import connect
from .pulse import PINGS, Pulse

POLL = 0.1  # seconds between two looks at what is awaited
SIZES = 16  # of calls whose times are kept
HEAD = 3.0  # seconds in which the head must answer
COUNT = 5.0  # seconds between two counts of the GPUs
LITTLE = 0.001  # of a CPU
LOOK = 0.5  # seconds between two looks at workers that were lost


class Worker:
    """An actor. It is idle, or `pending` is what it works on: True where somebody waits for that, else what Ray will have then."""

    def __init__(self, handle):
        self.handle = handle
        self.pending: Any = handle.hello.remote()
        self.pulse: Pulse | None = None  # while it works on what nobody waits for
        self.ready = False  # has it said hello since it was started?
        self.machine, self.device = "a machine that did not answer", ""
        self.key: str | None = None  # of the network that it holds

    @property
    def idle(self) -> bool:
        return self.ready and self.pending is None

    def __str__(self):
        return f"{self.machine} ({self.device})" if self.device else self.machine


class Workers:
    """All actors of this server.

    An actor that dies is started again by Ray, on another machine where its own is gone; one for which no machine has room waits
    for one to join.
    """

    def __init__(self, address: str):
        self.ray = connect(address)
        errors = self.ray.exceptions
        self.lost = (
            errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError, errors.NodeDiedError, errors.OutOfMemoryError,
        )
        self.kind = "cpu" if management.is_device_cpu(management.get_torch_device()) else "cuda"
        self.workers: list[Worker] = []
        self.changed = threading.Condition()
        self.timeout = 60.0  # seconds in which a worker has to show that it is there
        self.why = ""  # the last one was lost
        self._seconds: dict[tuple, deque[float]] = {}  # of the latest calls of a size
        self._known: list[dict] = []
        self._asking: threading.Thread | None = None
        self._turn = threading.Lock()  # to ask
        self._looked = self._counted = 0.0
        self._counts = False  # is there to be a worker on each GPU?
        self.ray.cloudpickle.register_pickle_by_value(worker_module)
        self._actor = self.ray.remote(
            num_cpus=self._cpus(), num_gpus=1 if self.kind == "cuda" else 0, max_restarts=-1, max_task_retries=0,
            scheduling_strategy="SPREAD", concurrency_groups={PINGS: 1},
        )(worker_module.Worker)

    def _cpus(self) -> float:
        """What an actor asks for: of one that asks for nothing Ray chooses the machine at random."""
        there = any(node["Resources"].get("CPU", 0) for node in self._nodes() if node["Alive"])
        return LITTLE if self.kind == "cpu" and there else 0

    def set_count(self, count: int) -> None:
        """So many actors from now on; 0: one for each GPU of the cluster, also of machines that join it later.

        Raises RuntimeError where there is no GPU. One whose machine is gone stays: it may come back.
        """
        with self.changed:
            self._counts = count == 0
            self.workers.sort(key=lambda worker: not worker.ready)
            while count and len(self.workers) > count:
                self.ray.kill(self.workers.pop().handle)
            self._add(count or self._gpus())
            if not self.workers:
                raise RuntimeError(
                    f"{NODE}: no machine of the cluster has a GPU ({self._machines()}). Start Ray on those that have one."
                )

    def _add(self, count):
        while len(self.workers) < count:
            self.workers.append(Worker(self._actor.remote(self.kind)))

    def _gpus(self) -> int:
        """Of the cluster; where this process computes on a CPU one at least, which is not there."""
        count = int(sum(node["Resources"].get("GPU", 0) for node in self._nodes() if node["Alive"]))
        return max(count, 1) if self.kind == "cpu" else count

    def take(self, key: str, only: bool = False) -> Worker | None:
        """An idle worker, which works from now on: one with the network `key` where there is any, or `only` such; else None."""
        with self.changed:
            self._look()
            idle = sorted((worker for worker in self.workers if worker.idle), key=lambda worker: worker.key != key)
            if not idle or only and idle[0].key != key:
                return None
            idle[0].pending = True
            return idle[0]

    def count_ready(self) -> int:
        """Workers that are there."""
        with self.changed:
            self._look()
            return sum(worker.ready for worker in self.workers)

    def at_work(self) -> bool:
        """Does a worker that is there work, were it on what nobody waits for any more?"""
        return any(worker.ready and worker.pending is not None for worker in self.workers)

    def note_seconds(self, size: tuple, seconds: float) -> None:
        """A call of this size took so long."""
        self._seconds.setdefault(size, deque(maxlen=9)).append(seconds)
        while len(self._seconds) > SIZES:
            self._seconds.pop(next(iter(self._seconds)), None)  # calls end in several threads

    def usual(self, size: tuple) -> float | None:
        """Seconds that a call of this size takes; None where none was made yet."""
        return statistics.median(self._seconds[size]) if size in self._seconds else None

    def give_back(self, worker: Worker, pending=None, lost: Exception | None = None) -> None:
        """It is idle again: at once, when `pending` is done, or, where it was lost, when it has come back."""
        with self.changed:
            worker.pending = pending
            worker.pulse = None if pending is None else Pulse(self.ray, worker.handle)
            if lost is not None:
                self._lose(worker, lost)
            self.changed.notify_all()

    def _lose(self, worker, error):
        worker.ready, worker.key, worker.pulse, self.why = False, None, None, f"{worker}: {error}"
        if isinstance(error, self.ray.exceptions.RayActorError) and error.actor_init_failed:
            worker.handle = self._actor.remote(self.kind)  # Ray does not start such a one again
        worker.pending = worker.handle.hello.remote()

    def _look(self):
        """Looks at workers that are started, or that still work on what nobody waits for."""
        if time.monotonic() - self._looked < LOOK and any(worker.idle for worker in self.workers):
            return
        self._looked = time.monotonic()
        if self._counts and self._looked - self._counted > COUNT:
            self._counted = self._looked
            self._add(self._gpus())
        awaited = [worker for worker in self.workers if isinstance(worker.pending, self.ray.ObjectRef)]
        if not awaited:
            return
        done, _ = self.ray.wait([worker.pending for worker in awaited], num_returns=len(awaited), timeout=0)
        for worker in awaited:
            if worker.pending in done:
                self._awake(worker)
            elif worker.pulse is not None:
                try:
                    worker.pulse.check(self.timeout)
                except (*self.lost, TimeoutError) as error:
                    self._lose(worker, error)

    def _awake(self, worker):
        try:
            made = self.ray.get(worker.pending)
        except self.lost as error:
            return self._lose(worker, error)
        except self.ray.exceptions.RayError as error:
            if not worker.ready:
                return self._lose(worker, error)
            made = None  # of a call that nobody waits for
        if not worker.ready:
            worker.ready = True
            worker.machine, _, worker.device = made
        worker.pending = None

    def wait_for_one(self, timeout: float) -> None:
        """Waits until a worker has said hello; raises RuntimeError after `timeout` seconds."""
        until = time.monotonic() + timeout
        while not any(worker.ready for worker in self.workers):
            with self.changed:
                self._look()
            management.throw_exception_if_processing_interrupted()
            if time.monotonic() > until:
                raise RuntimeError(self.none_answers(timeout))
            time.sleep(POLL)

    def none_answers(self, timeout: float) -> str:
        return (
            f"{NODE}: no worker answers within {timeout:g} seconds. Machines of the cluster: {self._machines()}. "
            f"{self.why or 'Has one of them a free GPU, and the Python packages torch, safetensors and numpy?'}"
        )

    def _machines(self) -> str:
        return ", ".join(
            f"{node['NodeManagerHostname']} ({node['Resources'].get('GPU', 0):g} GPUs{'' if node['Alive'] else ', lost'})"
            for node in self._nodes()
        )

    def _nodes(self) -> list[dict]:
        """The machines of the cluster; as they were where its head does not answer, for which Ray waits for good."""
        def ask():
            self._known = self.ray.nodes()

        with self._turn:
            if self._asking is None:
                self._asking = threading.Thread(target=ask, daemon=True)
                self._asking.start()
                self._asking.join(HEAD)
            if not self._asking.is_alive():
                self._asking = None
        return self._known

    def lines(self) -> list[str]:
        """What there is, for the user."""
        return [str(worker) if worker.ready else "a worker that has not started yet" for worker in self.workers]


_all: list[Workers] = []


def workers_at(address: str) -> Workers:
    """The workers of this server; raises as `connect`."""
    if not _all:
        _all.append(Workers(address))
    connect(address)
    return _all[0]

