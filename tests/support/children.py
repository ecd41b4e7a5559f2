"""Python in a process of its own, with the pack's root and tests/support in reach and nothing of the tests loaded."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def run_python(*arguments, paths=(), timeout: float | None = None, check: bool = True) -> subprocess.CompletedProcess:
    """The ended process with its output as text; `paths`: more folders to import from.

    Raises RuntimeError with the output where the status is not 0, unless `check` is off.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, TESTS.parent, TESTS]))}
    command = [sys.executable, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, env=environment, timeout=timeout)
    if check and run.returncode:
        raise RuntimeError(f"{command} ended with status {run.returncode}:\n{run.stdout}\n{run.stderr}")
    return run


def run_module(name: str, *arguments) -> subprocess.CompletedProcess:
    return run_python("-m", name, *arguments)
