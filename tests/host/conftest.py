"""Boots the real ComfyUI named by TEMPORAL_UNET_HOST once in this process and loads the pack as the host does."""

import importlib
import os

import pytest

from support import host_in_process


def pytest_configure(config):
    host = os.environ.get("TEMPORAL_UNET_HOST")
    if not host:
        raise pytest.UsageError("TEMPORAL_UNET_HOST must name a ComfyUI checkout; `python dev.py test` sets it.")
    global _pack_name
    _pack_name = host_in_process.boot(host)


@pytest.fixture(scope="session")
def pack():
    """Imports a module of the pack by its dotted name inside it: `pack("nodes.bridge.model.unet_loader")`."""
    return lambda name: importlib.import_module(f"{_pack_name}.{name}")


@pytest.fixture(scope="session")
def node():
    """The node class that the host has under an id, ours or its own."""
    return host_in_process.node


@pytest.fixture(autouse=True)
def inference_mode():
    """Nodes run under this in the host."""
    import torch

    with torch.inference_mode():
        yield
