"""Processes that dev.py starts: the test rooms, and modules of tools/."""
from __future__ import annotations

import contextlib
import os
import signal
import subprocess

from tools.environments import ROOT, WINDOWS, Host, cache


def start_child(command: list, host: Host, output=None, **environment: str) -> subprocess.Popen:
    """A process that works from the repository root; `output` is a file for what it prints, None for this terminal."""
    env = {"OMP_WAIT_POLICY": "passive", **os.environ, **environment, "TEMPORAL_UNET_HOST": str(host.folder)}
    if cache() in host.folder.parents:  # of a ComfyUI of ours bytecode is kept: compiling it is a quarter of each start
        env.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.Popen([str(part) for part in command], cwd=ROOT, env=env, stdout=output, stderr=output and subprocess.STDOUT)


def stop_children(processes: list[subprocess.Popen], reason: BaseException) -> None:
    """Ask children to end, because this process was stopped for `reason`; kill those that have not ended after 30 s."""
    for process in processes:
        if not isinstance(reason, KeyboardInterrupt):  # Ctrl-C has reached the child already
            process.terminate() if WINDOWS else process.send_signal(signal.SIGINT)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def run_tool(host: Host, module: str, *arguments) -> int:
    """Run a module of tools/ to its end, with the helpers of tests/support in reach; the exit status."""
    paths = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = start_child([host.python, "-m", f"tools.{module}", *arguments], host, PYTHONPATH=os.pathsep.join(paths))
    try:
        return process.wait()
    except BaseException as reason:
        stop_children([process], reason)
        raise
