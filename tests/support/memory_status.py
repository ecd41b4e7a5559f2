"""Memory of this process, as Linux counts it."""

import threading
import time
from pathlib import Path


def status(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


class Peak(threading.Thread):
    """The most that a field of /proc/self/status shows from now until `stop`, in MiB; by default anonymous memory."""

    def __init__(self, field: str = "RssAnon"):
        super().__init__(daemon=True)
        self.field, self.peak, self.running = field, 0.0, True
        self.start()

    def run(self):
        while self.running:
            self.peak = max(self.peak, status(self.field))
            time.sleep(0.01)

    def stop(self) -> float:
        self.running = False
        self.join()
        return max(self.peak, status(self.field))
