"""The calls of the network in one sampling run: each on an idle worker, or here."""

import logging
import threading
import time
from functools import cached_property

import comfy.model_management as management
import torch

from ....unet.arrays import to_tensor
from ..control.asked import computed
from ..node_names import RAY_POOL as NODE
from ..sampling.lanes import LANE
from .attempts import Request, answer
from .sent_controls import apart, as_array, joins, sent
from .shared_network import SharedNetwork
from .stays_here import code_in, refusal, replaced_in
from .workers import POLL, Worker, Workers

MOST_LOST = 3  # workers, after which a call is taken to be what ends them


class PoolRun:
    """An `Elsewhere`. `here`: does one of the calls that are out at the same time run in this process? `module`: its network.

    `controls`: do controls compute in this process, whoever computes the network?
    """

    def __init__(self, workers: Workers, network: SharedNetwork, here: bool, module: torch.nn.Module, controls: bool):
        self.workers, self.network, self.here, self.module, self.controls = workers, network, here, module, controls
        self.turn = threading.Lock()
        self._here = threading.Semaphore(int(here))
        self._dropped = threading.Event()
        self._kept: set[str] = set()  # what calls had that kept them here
        self._controlnets: set[str] = set()  # the keys of those that calls named: branches and steps may name different ones

    def __deepcopy__(self, memo):
        return self

    @property
    def lanes(self) -> int:
        return max(1, self.workers.count_ready() + self.here)

    def drop(self):
        self._dropped.set()

    def call(self, executor, x, timesteps, context, y, control, options, **kwargs):
        """The prediction of the network [b*t, c, h, w] for its inputs as the host calls it; `executor` calls it here."""
        def run_here():
            with self.turn:
                residuals = computed(control)
                if self.controls:  # of two networks at work on one device one may get the other's weights: the host streams them
                    return executor(x, timesteps, context, y, residuals, options, **kwargs)
            return executor(x, timesteps, context, y, residuals, options, **kwargs)

        image_only = kwargs.get("image_only_indicator")
        rows = {
            "x": x, "timesteps": timesteps, "context": context, "y": y, "time_context": kwargs.get("time_context"),
            "image_only": None if image_only is None else image_only.flatten(),
        }
        request = None if self._keeps(options) else self._request(rows, control, options)
        in_lane = LANE in options
        if in_lane:
            self.turn.release()
        try:
            made = self._anywhere(request, run_here, in_lane)
        finally:
            if in_lane:
                self.turn.acquire()
        return made if isinstance(made, torch.Tensor) else to_tensor(made, x.device)

    def _request(self, rows, control, options) -> Request:
        controls, terms = sent(control, rows)
        x = rows["x"]
        rows, frames = {**rows, **apart(x, self.network.latent_channels)}, len(x) // len(options["cond_or_uncond"])
        arrays = {name: as_array(row) for name, row in rows.items()}
        size = self.network.key, tuple(x.shape), len(controls)
        self._controlnets.update(control.network.key for control in controls)
        return Request(self.network, (arrays, terms, joins(options, x), frames), size, controls, tuple(self._controlnets))

    def _keeps(self, options) -> bool:
        """Must this call run here? Raises ValueError where it must, and this machine does not compute."""
        if (code := code_in(options) or self._replaced) is None:
            return False
        if not self.here:
            raise ValueError(refusal(code))
        if code not in self._kept:
            self._kept.add(code)
            logging.warning("%s: calls with %s are computed on this machine alone, since workers do not get that.", NODE, code)
        return True

    @cached_property
    def _replaced(self) -> str | None:
        """As `replaced_in`, at the first call: packs may replace code when a run starts, after this was made."""
        return replaced_in(self.module)

    def _anywhere(self, request, run_here, in_lane):
        """What a worker makes of the request, or this machine; where there is no request, this machine."""
        def check():
            if self._dropped.is_set():
                raise management.InterruptProcessingException()
            if not in_lane:  # in a lane the thread that started it looks
                management.throw_exception_if_processing_interrupted()

        since, lost = time.monotonic(), 0
        while True:
            check()
            worker, here = self._place(request)
            if worker is not None:
                if (made := answer(self.workers, worker, request, check)) is not None:
                    return made
                since, lost = time.monotonic(), lost + 1
                if lost == MOST_LOST and not self.here:
                    raise RuntimeError(f"{NODE}: {lost} workers were lost by one call, the last one so: {self.workers.why}")
            elif here:
                try:
                    return run_here()
                finally:
                    self._leave()
            elif self.here or self.workers.at_work():  # here: this machine works on another call
                since = time.monotonic()
            elif time.monotonic() - since > self.workers.timeout:
                raise RuntimeError(self.workers.none_answers(self.workers.timeout))

    def _place(self, request) -> tuple[Worker | None, bool]:
        """(an idle worker, or is it this machine's turn?) for a request; where there is neither, it waits a moment for a change."""
        with self.workers.changed:
            if request is not None and (worker := self.workers.take(request.network.key)) is not None:
                return worker, False
            if self._here.acquire(blocking=False):
                return None, True
            self.workers.changed.wait(POLL)
            return None, False

    def _leave(self):
        """This machine has computed a call."""
        with self.workers.changed:
            self._here.release()
            self.workers.changed.notify_all()
