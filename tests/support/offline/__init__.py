"""Processes on a machine without a network, and what they ask one for nevertheless."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# A namespace has a loopback device of its own, no other and no route. As another user's root where this one may not make one.
NAMESPACES = (["unshare", "--net"], ["unshare", "--net", "--map-root-user"])


def run_offline(command: list, log: Path, **options) -> tuple[subprocess.CompletedProcess, set[str]]:
    """`subprocess.run` of a command that reaches nothing but this machine; and the hosts that its Python processes looked for.

    `log`: a file for these. Only Linux takes networks away from a process; elsewhere what they look for is all that is known.
    """
    log.touch()
    environment = {**os.environ, "PYTHONPATH": str(HERE), "ADDRESSES": str(log)}
    done = subprocess.run([str(part) for part in [*_prefix(), *command]], env=environment, **options)
    return done, set(map(json.loads, log.read_text(encoding="utf-8").splitlines()))


def _prefix() -> list:
    if sys.platform != "linux":
        return []
    enter = [sys.executable, "-I", HERE / "loopback.py"]  # -I: its own probe is none of theirs
    for namespace in NAMESPACES:
        tried = subprocess.run([*namespace, *enter, "true"], capture_output=True, text=True)
        if tried.returncode == 0:
            return [*namespace, *enter]
    raise AssertionError(f"no network namespace can be made here (a container needs CAP_SYS_ADMIN, CAP_NET_ADMIN): {tried.stderr}")
