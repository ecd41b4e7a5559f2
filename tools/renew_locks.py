"""Makes the lock files in tools/locks again.

Each holds every package of one environment, for all platforms and Pythons, with its hashes.

`python dev.py lock` keeps the versions that still satisfy the requirements, `python dev.py lock -- --upgrade` takes the newest. uv
resolves them from what the index says of wheels: no package is built or run. Review the difference before you commit it.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.environments import (
    ARCHIVES,
    LINT_REQUIREMENTS,
    LOCKS,
    REGISTRY_REQUIREMENTS,
    TEST_REQUIREMENTS,
    TORCH,
    DevError,
    comfyui_source,
    env_python,
    install_locked,
    make_venv,
    say,
)

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin", "x86_64-pc-windows-msvc")


class Uv:
    """uv from its own lock file, in a folder that is thrown away."""

    def __init__(self, folder: Path):
        self.folder = folder
        make_venv(Path(sys.executable), folder / "env")
        install_locked(folder / "env", LOCKS / "uv.txt")
        self.python = env_python(folder / "env")

    def run(self, *arguments) -> None:
        command = [self.python, "-m", "uv", "pip", *arguments, "--quiet", "--only-binary", ":all:", "--no-python-downloads",
                   "--python", self.python, "--cache-dir", self.folder / "cache"]
        # av has no wheel for a macOS before 14.
        if subprocess.run(command, env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}).returncode:
            raise DevError(
                f"uv could not finish `uv pip {' '.join(map(str, arguments))}`: see its message above. It reads the index from "
                "UV_DEFAULT_INDEX and not from pip's configuration."
            )

    def lock(self, name: str, *arguments) -> None:
        """Write the lock file `name` for these requirements.

        Checks that it holds wheels of the whole environment for every platform.
        """
        lock = LOCKS / name
        say(f"Resolving {lock}")
        self.run("compile", "--universal", "--python-version", PYTHONS[0], "--generate-hashes", "--no-annotate",
                 "--custom-compile-command", "python dev.py lock", "--output-file", lock, *arguments)
        for platform in PLATFORMS:
            for version in PYTHONS:
                self.run("install", "--dry-run", "--target", self.folder / "target", "--require-hashes",
                         "--python-platform", platform, "--python-version", version, "-r", lock)


def renew(uv_arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        uv = Uv(Path(folder))
        torch, itself = Path(folder) / "torch.in", Path(folder) / "uv.in"
        torch.write_text("\n".join(TORCH))
        itself.write_text("uv")
        uv.lock("uv.txt", itself, *uv_arguments)
        uv.lock("lint.txt", LINT_REQUIREMENTS, *uv_arguments)
        uv.lock("registry.txt", REGISTRY_REQUIREMENTS, *uv_arguments)
        uv.lock("torch.txt", torch, *uv_arguments)
        uv.lock("tests.txt", TEST_REQUIREMENTS, *uv_arguments)
        for version in ARCHIVES:
            requirements = comfyui_source(version, uv.python) / "requirements.txt"
            uv.lock(f"comfyui-{version}.txt", requirements, TEST_REQUIREMENTS, "--constraints", LOCKS / "torch.txt", *uv_arguments)
