"""Boots the real ComfyUI named by TEMPORAL_UNET_HOST once in this process and loads the pack as the host does."""

import asyncio
import atexit
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _boot(host: str) -> str:
    """Starts the host's modules and the pack; returns the name under which the host imported the pack."""
    sys.path.insert(0, host)
    base = tempfile.mkdtemp(prefix="temporal-unet-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    argv, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", base]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401  (reads sys.argv)

    sys.argv = argv
    import nodes as host_nodes

    asyncio.run(host_nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    if not asyncio.run(host_nodes.load_custom_node(str(ROOT))):
        raise RuntimeError("The host could not import the pack; see its log above.")
    return str(ROOT).replace(".", "_x_")


def pytest_configure(config):
    host = os.environ.get("TEMPORAL_UNET_HOST")
    if not host:
        raise pytest.UsageError("TEMPORAL_UNET_HOST must name a ComfyUI checkout; `python dev.py test` sets it.")
    global _pack_name
    _pack_name = _boot(host)


@pytest.fixture(scope="session")
def pack():
    """Imports a module of the pack by its dotted name inside it: `pack("nodes.bridge.loader")`."""
    return lambda name: importlib.import_module(f"{_pack_name}.{name}")


@pytest.fixture(scope="session")
def node():
    """The node class that the host has under an id, ours or its own."""
    import nodes as host_nodes

    return lambda node_id: host_nodes.NODE_CLASS_MAPPINGS[node_id]


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes run under this in the host."""
    import torch

    with torch.inference_mode():
        yield
