"""The calls of the network in one sampling run: each on an idle worker, or here."""

import threading
import time

import comfy.model_management as management
import torch

from ....unet.arrays import to_array, to_tensor
from ....unet.replica import PLACES
from ..node_names import RAY_POOL as NODE
from ..sampling.lanes import LANE
from .attempts import Request, answer
from .shared_network import SharedNetwork
from .workers import POLL, Workers

MOST_LOST = 3  # workers, after which a call is taken to be what ends them


class PoolRun:
    """An `Elsewhere`. `here`: does one of the calls that are out at the same time run in this process?"""

    def __init__(self, workers: Workers, network: SharedNetwork, here: bool):
        self.workers, self.network, self.here = workers, network, here
        self.turn = threading.Lock()
        self._here = threading.Semaphore(int(here))
        self._dropped = threading.Event()

    def __deepcopy__(self, memo):
        return self

    @property
    def lanes(self) -> int:
        return max(1, self.workers.count_ready() + self.here)

    def drop(self):
        self._dropped.set()

    def call(self, executor, x, timesteps, context, y, control, options, **kwargs):
        """The prediction of the network [b*t, c, h, w] for its inputs as the host calls it; `executor` calls it here."""
        frames = x.shape[0] // len(options["cond_or_uncond"])
        args = _args(x, timesteps, context, y, control, frames, kwargs)
        request = Request(self.network, args, (self.network.key, tuple(x.shape)))
        in_lane = LANE in options
        if in_lane:
            self.turn.release()
        try:
            made = self._anywhere(request, lambda: executor(x, timesteps, context, y, control, options, **kwargs), in_lane)
        finally:
            if in_lane:
                self.turn.acquire()
        return made if isinstance(made, torch.Tensor) else to_tensor(made, x.device)

    def _anywhere(self, request, run_here, in_lane):
        def check():
            if self._dropped.is_set():
                raise management.InterruptProcessingException()
            if not in_lane:  # in a lane the thread that started it looks
                management.throw_exception_if_processing_interrupted()

        since, lost = time.monotonic(), 0
        while True:
            check()
            if (worker := self.workers.take(request.network.key)) is not None:
                if (made := answer(self.workers, worker, request, check)) is not None:
                    return made
                since, lost = time.monotonic(), lost + 1
                if lost == MOST_LOST and not self.here:
                    raise RuntimeError(f"{NODE}: {lost} workers were lost by one call, the last one so: {self.workers.why}")
            elif self._here.acquire(blocking=False):
                try:
                    return run_here()
                finally:
                    self._here.release()
            elif self.here or self.workers.at_work():  # here: this machine works on another call
                since = time.monotonic()
            elif time.monotonic() - since > self.workers.timeout:
                raise RuntimeError(self.workers.none_answers(self.workers.timeout))
            else:
                with self.workers.changed:
                    self.workers.changed.wait(POLL)


def _args(x, timesteps, context, y, control, frames, more):
    """What `Replica.call` takes, as arrays."""
    image_only = more.get("image_only_indicator")
    rows = {
        "x": x, "timesteps": timesteps, "context": context, "y": y, "time_context": more.get("time_context"),
        "image_only": None if image_only is None else image_only.flatten(),
    }
    residuals = {place: [_array(residual) for residual in (control or {}).get(place, ())] for place in PLACES}
    return {name: _array(value) for name, value in rows.items()}, residuals, frames


def _array(value):
    return None if value is None else to_array(value)
