"""The networks run with no ComfyUI on the machine."""

import ast
import json
import sys
from pathlib import Path

import pytest

from support.children import run_python

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "unet").rglob("*.py"))
ALLOWED = {"torch", "safetensors", "numpy"} | set(sys.stdlib_module_names)


def imports(path):
    """(level, dotted name) of everything that a module imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_room_may(path):
    allowed = ALLOWED | {"triton"} if path.name == "triton_kernels.py" else ALLOWED
    outside = {name for level, name in imports(path) if level == 0 and name.split(".")[0] not in allowed}
    depth = len(path.relative_to(ROOT / "unet").parts)
    above = {name for level, name in imports(path) if level > depth}
    assert outside | above == set()


@pytest.mark.slow
def test_it_imports_and_runs_where_the_host_cannot_be_imported():
    script = """
import importlib.abc, sys

class NoHost(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "execution"}:
            raise ImportError(f"{name} is the host's")

sys.meta_path.insert(0, NoHost())
import torch, unet
from dataclasses import replace
from support.families import TINY, inputs
config = replace(TINY["sd1_tiny"], context_dim=8)
print(tuple(unet.UNetModel(config)(**inputs(config)).shape))
"""
    run = run_python("-c", script, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 4, 8, 8)"


def test_pip_installs_every_room_of_it():
    packages = [Path("temporal_unet", path.parent.relative_to(ROOT / "unet")) for path in MODULES if path.name == "__init__.py"]
    expected = json.dumps(sorted(".".join(package.parts) for package in packages))
    assert f"packages = {expected}\n" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
