"""A real ComfyUI inside this process, with the pack loaded as the host loads it."""

import asyncio
import atexit
import gc
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def boot(host: str, extra_nodes: bool = True, device: str = "cpu") -> str:
    """Starts the modules of the ComfyUI in `host` and the pack; returns the name under which the host imported the pack.

    `device`: "cpu", or "cuda" for the graphics card that the host finds.
    """
    sys.path.insert(0, str(host))
    base = tempfile.mkdtemp(prefix="temporal-unet-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    argv, sys.argv = sys.argv, ["main.py", *(["--cpu"] if device == "cpu" else []), "--base-directory", base]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401  (reads sys.argv)

    sys.argv = argv
    import nodes as host_nodes

    if extra_nodes:
        asyncio.run(host_nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    if not asyncio.run(host_nodes.load_custom_node(str(ROOT))):
        raise RuntimeError("The host could not import the pack; see its log above.")
    gc.freeze()  # the garbage collector need not look through all modules again and again
    return str(ROOT).replace(".", "_x_")


def node(node_id: str):
    """The node class that the host has under an id, ours or its own."""
    import nodes as host_nodes

    return host_nodes.NODE_CLASS_MAPPINGS[node_id]
