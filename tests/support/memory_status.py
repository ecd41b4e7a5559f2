"""Memory of this process, as Linux counts it."""

import threading
import time
from pathlib import Path


def status(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


class PeakAnon(threading.Thread):
    """The most anonymous memory that the process holds while this runs, in MiB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.running = 0.0, True

    def run(self):
        while self.running:
            self.peak = max(self.peak, status("RssAnon"))
            time.sleep(0.01)

    def stop(self):
        self.running = False
        self.join()
        return self.peak
