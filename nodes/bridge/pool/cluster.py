"""Starting Ray on this machine, or joining a cluster: once in the life of a server."""

import importlib.util
import os
import secrets
import socket
import sys
from pathlib import Path

import psutil

from .... import unet
from ..node_names import RAY_POOL as NODE

STORE = 512 * 2**20  # bytes of the object store of a local start: a call's inputs and results, and chunks of weights
REACH = 5.0  # seconds in which the head's port must answer
FOR_GOOD = 10**8  # seconds
OLDEST = "2.52"  # knows tokens
INSTALL = f'{sys.executable} -m pip install "ray>={OLDEST}"'
TOKEN_FILE = Path.home() / ".ray" / "auth_token"
NOT_JOINED = "No node info found"  # in what Ray says
JOIN = "Copy the file ~/.ray/auth_token of the head's machine to the same place here, and start ComfyUI again."

_joined: list[str] = []  # the address that this server is at


def connect(address: str):
    """The module ray, connected to `address`: "" starts it on this machine, "auto" finds one that runs here, else host:port.

    Raises RuntimeError where Ray is not installed, cannot be reached, asks for another token, or is of another version.
    """
    if importlib.util.find_spec("ray") is None:
        raise RuntimeError(
            f"{NODE}: Ray is not installed. Install it into ComfyUI's Python, on every machine in the same version, and start "
            f"ComfyUI again: {INSTALL}"
        )
    if _joined and address != _joined[0]:
        raise RuntimeError(
            f"{NODE}: this ComfyUI is connected to {_named(_joined[0])} already, and can be to one cluster only. Enter that "
            f"address, or start ComfyUI again to use {_named(address)}."
        )
    if not _joined:
        if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ:
            raise RuntimeError(
                f"{NODE}: another node pack has loaded Ray in this ComfyUI already, without tokens. Start ComfyUI with the "
                f"environment variable RAY_AUTH_MODE=token, or without that pack."
            )
        _set_up(address)
        _reach(address)
        import ray

        if tuple(map(int, ray.__version__.split(".")[:2])) < tuple(map(int, OLDEST.split("."))):
            raise RuntimeError(
                f"{NODE}: Ray {ray.__version__} is too old, {OLDEST} or newer is needed on every machine. Install it and start "
                f"ComfyUI again: {INSTALL}"
            )
        if ray.is_initialized():
            raise RuntimeError(f"{NODE}: another node pack has started Ray in this ComfyUI already. Start ComfyUI without it.")
        _init(ray, address)
        _joined.append(address)
    import ray

    return ray


def _set_up(address):
    """Ray reads these when it is imported: no usage statistics, and tokens, since its ports listen on every interface."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(FOR_GOOD))  # after it Ray ends this whole process
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] != "token" or _has_token():
        return
    if address:  # Ray would end this process where it has none
        raise RuntimeError(f"{NODE}: this machine has no token for the cluster at {address}. {JOIN}")
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _reach(address):
    """Raises RuntimeError where nothing listens there, or no Ray runs here: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if address in ("", "auto"):
        return
    if not host or not port.isdigit():
        raise RuntimeError(f"{NODE}: the address is {address!r}, expected host:6379, auto, or nothing to start Ray here.")
    try:
        socket.create_connection((host, int(port)), REACH).close()
    except OSError as error:
        raise RuntimeError(
            f"{NODE}: nothing answers at {address} ({error}). Start Ray there (ray start --head --port={port}), let its firewall "
            f"pass this machine, or correct the address."
        ) from None
    if not any("raylet" in (process.info["name"] or "") for process in psutil.process_iter(["name"])):
        raise RuntimeError(f"{NODE}: {_why(NOT_JOINED, address)}")


def _has_token():
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or TOKEN_FILE.exists() or named is not None and Path(named).exists()


def _init(ray, address):
    # By the count of CPUs Ray starts processes at once, which our actors, in an environment of their own, do not use.
    local = {"object_store_memory": STORE, "include_dashboard": False, "num_cpus": 0} if not address else {}
    try:
        ray.init(
            address=address or "local", log_to_driver=False, configure_logging=False,
            runtime_env={"py_modules": [str(Path(unet.__file__).parent)]}, **local,
        )
    except Exception as error:  # of many kinds
        ray.shutdown()
        raise RuntimeError(f"{NODE}: {_why(f'{error} {error.__cause__ or str()}', address)}") from error


def _why(text: str, address: str) -> str:
    if "ersion mismatch" in text:
        return (
            f"the cluster at {address} has another version of Ray or Python. All machines need equal ones, to the last "
            f"number. Ray says: {' '.join(text.split())}"
        )
    if "any running Ray instance" in text:
        return "no Ray runs on this machine. Start it here: ray start --head, or ray start --address=HEAD:6379 to join a cluster."
    if "InvalidAuthToken" in text:
        return f"the cluster at {address} has another token than this machine. {JOIN}"
    if NOT_JOINED in text:
        return (
            f"this machine is no part of the cluster at {address}. Run here, too, with the head's file ~/.ray/auth_token: "
            f"ray start --address={address} (with --num-gpus=0 where this ComfyUI alone is to use its GPU)."
        )
    if not address:
        return f"Ray could not be started on this machine. It says: {text}"
    return f"no connection to Ray at {address}: it is no Ray, or has another token. {JOIN} Ray says: {' '.join(text.split())}"


def _named(address):
    return address or "a Ray on this machine"
