"""A running ComfyUI with the pack installed: started, asked and stopped. Only the standard library is used."""
from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tools.environments import PACK, ROOT, WINDOWS, DevError, ask_python


class ServerError(DevError):
    """The host refused, failed or died; the text holds what it said."""


def link_folder(target: Path, link: Path) -> None:
    """`link` becomes a link to the folder `target`; one that is there already is replaced."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() or (WINDOWS and link.exists()):
        link.unlink() if link.is_symlink() else link.rmdir()
    if WINDOWS:  # a junction: symbolic links need a privilege there
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, stdout=subprocess.DEVNULL)
    else:
        link.symlink_to(target, target_is_directory=True)


def link_file(source: Path, target: Path) -> None:
    """`target` becomes `source` without copying where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    for make in (os.link, os.symlink, shutil.copyfile):
        with contextlib.suppress(OSError):
            return make(source.resolve(), target)
    raise DevError(f"{source} could not be linked or copied to {target}: check the space and rights there.")


@functools.cache
def has_accelerator(python: Path) -> bool:
    return ask_python(python, "(t := __import__('torch')).cuda.is_available() or t.backends.mps.is_available()") == "True"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, even one that was killed itself (1: PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Server:
    """A running ComfyUI with the pack installed; starts on `with`, stops at its end, and leaves no process behind.

    host: folder of the ComfyUI checkout. python: its interpreter. base: its base directory (models, input, output, log), made
    when missing. cpu: None asks torch. pack: the folder linked into custom_nodes, None where the base directory has it already.
    Raises `ServerError` when the host dies at start, is not ready in `start_timeout` seconds, or cannot import the pack.
    """

    def __init__(self, host: Path, python: Path, base: Path, extra_args=(), *, port: int | None = None, cpu: bool | None = None,
                 pack: Path | None = ROOT, start_timeout: float = 300) -> None:
        self.host, self.python, self.base = Path(host), Path(python), Path(base).absolute()
        self.extra_args, self.pack, self.start_timeout = list(extra_args), pack, start_timeout
        self.cpu = not has_accelerator(self.python) if cpu is None else cpu
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = self.base / "server.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def start(self) -> None:
        for folder in ("input", "output", "models/checkpoints", "models/diffusion_models", "models/vae", "models/clip_vision",
                       "models/controlnet", "models/loras", "custom_nodes"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                raise ServerError(f"Port {self.port} is taken by another program: end it or choose another port.")
        if self.pack:
            link_folder(self.pack, self.base / "custom_nodes" / PACK)
        command = [self.python, self.host / "main.py", *(["--cpu"] if self.cpu else []), "--port", str(self.port),
                   "--base-directory", self.base, "--disable-api-nodes", "--database-url", "sqlite:///:memory:", *self.extra_args]
        if WINDOWS:
            own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        else:
            own_group = {"start_new_session": True, "preexec_fn": die_with_parent if sys.platform == "linux" else None}
        # Without the second, OpenMP's threads wait by spinning, which stalls a machine whose cores are shared.
        environment = {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "passive", **os.environ}
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen([str(part) for part in command], cwd=self.host, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, env=environment, **own_group)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while True:
            self._check_alive()
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                break
            if time.monotonic() > deadline:
                raise ServerError(f"ComfyUI was not ready after {self.start_timeout:g} s; the end of its log:\n{self.log(40)}")
            time.sleep(0.2)
        if not re.search(rf"^.*seconds: .*custom_nodes\W{PACK}\s*$", self.log(), re.MULTILINE):
            imports = self.log().partition("Import times for custom nodes")[0].splitlines()
            log = "\n".join(imports[-30:])
            raise ServerError(f"ComfyUI started but could not import the pack in {self.pack or self.base}; its log:\n{log}")

    def _check_alive(self) -> None:
        if self.process is None or self.process.poll() is not None:
            status = "not started, or stopped" if self.process is None else f"exit status {self.process.returncode}"
            raise ServerError(f"ComfyUI is not running ({status}); the end of its log:\n{self.log(40)}")

    def stop(self) -> None:
        """End the server and whatever it started."""
        process, self.process = self.process, None
        if process is None:
            return
        if WINDOWS:
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
        else:
            for number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 30)):
                with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone, as macOS says the latter
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience)
        process.wait(30)

    def log(self, last_lines: int | None = None) -> str:
        """The server's log, or its last lines."""
        if not self.log_file.exists():
            return ""
        text = self.log_file.read_text(encoding="utf-8", errors="replace")
        return text if last_lines is None else "\n".join(text.splitlines()[-last_lines:])

    def get(self, path: str):
        """GET: parsed JSON, or bytes where the answer is something else."""
        return self._request(path, None)

    def post(self, path: str, body: dict):
        """POST `body` as JSON; the answer as in `get`."""
        return self._request(path, json.dumps(body).encode())

    def _request(self, path: str, data: bytes | None):
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} if data is not None else {})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy set for downloads is not for this
        with direct.open(request, timeout=60) as response:
            content = response.read()
            return json.loads(content) if content and "json" in response.headers.get_content_type() else content

    def queue(self, prompt: dict, client_id: str | None = None) -> str:
        """Queue an API-mode workflow; its prompt id. Raises `ServerError` with the host's reasons when it is refused."""
        try:
            return self.post("/prompt", {"prompt": prompt, **({"client_id": client_id} if client_id else {})})["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise ServerError(f"ComfyUI refused the workflow: {refusal(error.read())}") from None

    def wait(self, prompt_id: str, timeout: float) -> dict:
        """The history entry, once the prompt has ended, well or not: see `failure`."""
        deadline, pause = time.monotonic() + timeout, 0.01
        while time.monotonic() < deadline:
            self._check_alive()
            with contextlib.suppress(OSError):  # the check above reports a server that has just died, with its log
                entry = self.get(f"/history/{prompt_id}").get(prompt_id)
                if entry:
                    return entry
            time.sleep(pause)
            pause = min(1.5 * pause, 0.05)
        raise ServerError(f"Prompt {prompt_id} had not ended after {timeout:g} s; the end of the log:\n{self.log(40)}")

    def interrupt(self) -> None:
        self.post("/interrupt", {})


def refusal(body: bytes) -> str:
    """The readable part of the host's answer to a workflow that it refuses."""
    answer = json.loads(body)
    lines = [f"{answer['error']['message']} {answer['error']['details']}".strip()]
    for node_id, node in (answer["node_errors"] or {}).items():
        lines += [f"node {node_id} ({node['class_type']}): {reason['message']}: {reason['details']}" for reason in node["errors"]]
    return "; ".join(lines)


def failure(entry: dict) -> str | None:
    """Why a history entry did not succeed, or None."""
    if entry["status"]["status_str"] == "success":
        return None
    for kind, details in entry["status"]["messages"]:
        if kind == "execution_error":
            return f"{details['node_type']} (node {details['node_id']}): {details['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return f"interrupted at {details['node_type']} (node {details['node_id']})"
    return f"status {entry['status']['status_str']}"
