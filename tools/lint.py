"""ruff on every Python file, mypy on unet/ and nodes/bridge/; their settings are in pyproject.toml."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tools.environments import PACK, ROOT
from tools.server import link_folder


def main() -> int:
    """0 where both find nothing."""
    ruff = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT)
    package = PACK.replace("-", "_")  # relative imports need a package, and the checkout's own name may be no name of one
    with tempfile.TemporaryDirectory() as folder:
        link_folder(ROOT, Path(folder) / package)
        rooms = ("-p", f"{package}.unet", "-p", f"{package}.nodes.bridge")
        settings = ("--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache")
        mypy = subprocess.run([sys.executable, "-m", "mypy", *settings, *rooms], cwd=folder)
    return ruff.returncode or mypy.returncode


if __name__ == "__main__":
    sys.exit(main())
