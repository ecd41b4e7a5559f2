"""The pack as the Comfy registry gives it to users: packed by comfy-cli, the registry's own tool, and unpacked into a bare host."""
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.environments import PACK, ROOT, registry_env
from tools.server import Server


def comfy_node(command: str, folder: Path) -> str:
    """What `comfy node <command>` prints in `folder`. Asks nothing, sends nothing, and leaves the user's settings alone."""
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [registry_env(), "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", command], cwd=folder,
        env={**os.environ, "HOME": str(home), "USERPROFILE": str(home), "DO_NOT_TRACK": "1", "NO_COLOR": "1", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def _not_ours():
    """As shutil wants it: of the names in a folder those that git ignores."""
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    return shutil.ignore_patterns(".git", *(line.strip("/") for line in lines))


def repository_files() -> Iterator[Path]:
    """All files in the working tree that git does not ignore."""
    ignored = _not_ours()
    for folder, folders, names in os.walk(ROOT):
        left_out = ignored(folder, [*folders, *names])
        folders[:] = set(folders) - left_out
        yield from (Path(folder, name) for name in set(names) - left_out)


def copy_repository(folder: Path) -> Path:
    """`folder`, made a git repository of what is in the working tree and not ignored: comfy-cli packs what git tracks."""
    shutil.copytree(ROOT, folder, ignore=_not_ours())
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", "-c", "core.autocrlf=false", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def package(tmp_path_factory) -> Path:
    """The zip file that `comfy node publish` would upload."""
    folder = copy_repository(tmp_path_factory.mktemp("registry") / PACK)
    said = comfy_node("pack", folder)
    assert "Warning" not in said, said
    return folder / "node.zip"


def install(package: Path, base: Path) -> Path:
    """Unpack the package where the registry's installers do: a folder of that name in custom_nodes of this base directory."""
    folder = base / "custom_nodes" / PACK
    folder.mkdir(parents=True)
    with zipfile.ZipFile(package) as file:
        file.extractall(folder)
    return folder


def bare_server(host: Path, python: Path, base: Path, package: Path, **options) -> Server:
    """A server, to be entered with `with`, that has the package and no other file: no models, and not the repository."""
    install(package, base)
    return Server(host, python, base, pack=None, **options)
