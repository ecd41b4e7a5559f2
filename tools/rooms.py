"""The rooms of tests that `dev.py test` runs, each in a process of its own."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from tools.environments import ROOT, DevError, Host, say
from tools.processes import start_child, stop_children


class Room:
    """The tests of one folder of tests/ on one host: a process, what it printed, and how many passed, failed and were skipped."""

    def __init__(self, name: str, host: Host, extra: list[str], scratch: Path, chosen: bool = False, half: int | None = None):
        """`extra`: arguments for pytest. `chosen`: the user's own selection is among them, which may leave the room empty.

        `half`: 0 or 1 for every other two files of the folder, from the first or the third on: neighbors share what they start.
        """
        self.name, self.host, self.extra, self.chosen, self.half = name, host, extra, chosen, half
        part = "" if half is None else f", half {half + 1}"
        self.title = f"tests/{name}{part} on ComfyUI {host.name}"
        file = re.sub(r"[^\w.]+", "-", f"{name}{part}-{host.name}")  # a host of the user's is named by its path
        self.report, self.log = (scratch / f"{file}.{suffix}" for suffix in ("report", "log"))

    def start(self, threads: int) -> subprocess.Popen:
        say(f"Started {self.title}")
        self.since = time.monotonic()
        with self.log.open("wb") as log:
            return start_child(self.command(), self.host, log, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", str(threads)))

    def command(self) -> list:
        folder = ROOT / "tests" / self.name
        files = enumerate(sorted(folder.glob("test_*.py")))
        tests = [folder] if self.half is None else [file for index, file in files if index // 2 % 2 == self.half]
        return [self.host.python, "-m", "pytest", "-c", ROOT / "tests" / "pytest.ini", *tests, f"--junit-xml={self.report}",
                *self.extra]

    def report_counts(self, status: int) -> Counter:
        """Print what the process printed; its counts."""
        text = self.log.read_text(encoding="utf-8", errors="replace").rstrip()
        say(f"\n== {self.title}, {time.monotonic() - self.since:.0f} s\n{text}")
        return self.counts(status)

    def counts(self, status: int) -> Counter:
        suites = ElementTree.parse(self.report).getroot().iter("testsuite") if self.report.exists() else ()
        sums = Counter()
        for suite in suites:
            sums.update({name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")})
        failed = sums["failures"] + sums["errors"]
        nothing_chosen = status == 5 and self.chosen
        if status and not failed and not nothing_chosen:
            say(f"{self.title}: pytest ended with status {status} and no failed test (5: it found no tests)")
            failed = 1
        passed = sums["tests"] - failed - sums["skipped"] if sums["tests"] else 0
        return Counter(passed=passed, failed=failed, skipped=sums["skipped"])


class NodeRoom(Room):
    """tests/web, by node's own test runner."""

    def command(self) -> list:
        files = sorted((ROOT / "tests" / "web").rglob("*.test.*js"))  # each by name: node versions differ on a folder
        node = shutil.which("node")
        if not (node and files):
            raise DevError("tests/web holds no *.test.mjs file." if node else "tests/web needs node: install Node.js 20 or newer.")
        return [node, "--test", "--test-reporter=spec", "--test-reporter-destination=stdout", "--test-reporter=tap",
                f"--test-reporter-destination={self.report}", *files]

    def counts(self, status: int) -> Counter:
        found = dict(re.findall(r"^# (pass|fail|skipped) (\d+)$", self.report.read_text(encoding="utf-8"), re.MULTILINE))
        return Counter(passed=int(found["pass"]), failed=max(int(found["fail"]), int(status != 0)), skipped=int(found["skipped"]))


def side_by_side(lanes: list[list[Room]], rest: list[Room], threads: int) -> Counter:
    """Run the rooms of each lane one after the other, and the lanes at the same time; the sum of their counts.

    A lane that has come to its end takes the next of the `rest`, so that all end at about the same time.
    """
    total, running = Counter(), {}
    try:
        while any(lanes) or rest or running:
            for index, lane in enumerate(lanes):
                if index not in running and (left := lane or rest):
                    room = left.pop(0)
                    running[index] = room, room.start(threads)
            time.sleep(0.2)
            for index, (room, process) in list(running.items()):
                if process.poll() is not None:
                    del running[index]
                    total += room.report_counts(process.returncode)
    except BaseException as reason:
        stop_children([process for _, process in running.values()], reason)
        raise
    return total
