"""Asking a worker, while a call runs on it, whether it is still there."""

import time
from typing import Any

PINGS = "pings"  # what an actor answers while it works
PING = 5.0  # seconds between two questions


class Pulse:
    """That of one worker, by its handle, from now on."""

    def __init__(self, ray, handle):
        self._ray, self._handle = ray, handle
        self._ping: Any = None
        self._heard = self._asked = time.monotonic()

    def note(self) -> None:
        """Something else came from it."""
        self._heard = time.monotonic()

    def check(self, timeout: float) -> None:
        """To be called now and then. Raises TimeoutError where it has not answered for `timeout` seconds, or what Ray says."""
        now = time.monotonic()
        if self._ping is not None:
            if self._ray.wait([self._ping], timeout=0)[0]:
                self._ray.get(self._ping)
                self._ping, self._heard = None, now
            elif now - self._asked > timeout:
                raise TimeoutError(f"no answer for {now - self._heard:.0f} seconds")
        elif now - self._asked > PING:
            self._ping, self._asked = self._handle.alive.options(concurrency_group=PINGS).remote(), now
