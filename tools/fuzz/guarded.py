"""One call in a process of its own, with limits: of time and memory, and none may run code out of a file. Linux alone."""
from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MOST_SECONDS = 5  # of the CPU
MOST_WAITING = 120  # s; a busy machine takes longer than the CPU; what waits for a pipe or a device does not end
MOST_MEMORY = 200 * 2**20  # bytes beyond the file
MOST_MAPPED = 3 * 2**30  # bytes of address space beyond the file, so that a bomb does not take the machine's memory
CODE = {  # events that none of the pack's readers causes; the safe reader of pickles looks names up without Python's own
    "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "ctypes.dlopen", "socket.connect",
}
MARK = "ran"  # the file that code out of an input makes in the folder that it is in: see pickle_edits.py


@dataclass(frozen=True)
class Outcome:
    """How a call ended. `fault` is None where that is allowed; else one of "error", "hang", "memory", "crash", "code"."""

    fault: str | None
    text: str
    place: str = ""  # the innermost line of the pack
    seconds: float = 0.0
    bytes: int = 0  # of memory, at most


def call(function: Callable[[], str], folder: Path) -> Outcome:
    """Calls `function` in a child process that works in `folder`, where its input is; every exception is a fault."""
    pipe, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(pipe)
        _in_child(function, folder, theirs)
    os.close(theirs)
    data = _wait(pipe, child)
    _, status, used = os.wait4(child, 0)
    os.close(pipe)
    seconds = used.ru_utime + used.ru_stime
    if data is None or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return Outcome("hang", f"no end after {seconds:.1f} s of the CPU", seconds=seconds)
    if not data:
        return Outcome("crash", f"the process ended with the wait status {status}", seconds=seconds)
    outcome = Outcome(**json.loads(data), seconds=seconds)
    ran = (folder / MARK).exists()
    return Outcome("code", "code out of the input was run", seconds=seconds) if ran else outcome


def _wait(pipe: int, child: int) -> bytes | None:
    """What the child writes until it ends; None where it does not end in time."""
    end, data = time.monotonic() + MOST_WAITING, b""
    while True:
        if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            os.kill(child, signal.SIGKILL)
            return None
        more = os.read(pipe, 65536)
        if not more:
            return data
        data += more


def _in_child(function: Callable[[], str], folder: Path, pipe: int) -> None:
    os.chdir(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + size + MOST_MAPPED,) * 2)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak of its memory begins here
    before, called = _status("VmRSS"), []
    sys.addaudithook(lambda event, _: called.append(event) if event in CODE else None)
    try:
        found = {"fault": None, "text": function()}
    except BaseException as error:  # noqa: BLE001 - any is a finding
        frames = [f"{Path(frame.filename).name}:{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        found = {"fault": "error", "text": f"{type(error).__name__}: {str(error)[:500]}", "place": " > ".join(frames[-4:])}
    beyond = _status("VmHWM") - before - size
    if beyond > MOST_MEMORY:
        found = {"fault": "memory", "text": f"{beyond / 2**20:.0f} MB beyond the file; {found['text']}"}
    if called:
        found = {"fault": "code", "text": f"it called {', '.join(called)}"}
    os.write(pipe, json.dumps({**found, "bytes": beyond}).encode())
    os._exit(0)


def _status(key: str) -> int:
    """Bytes that the system reports of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{key}:"))
