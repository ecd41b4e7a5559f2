"""A process that loads a full checkpoint and measures the memory that it takes.

    python -m support.checkpoint_worker unet|ours|host PATH OUT
"""

import gc
import importlib
import json
import os
import sys
from pathlib import Path

import torch

from support.host_in_process import boot
from support.memory_status import Peak, status


def load(kind: str, pack: str, path: str):
    """What Load UNet, Load Checkpoint or the host's loader of checkpoints make of the file."""
    import comfy.sd

    loader = importlib.import_module(f"{pack}.nodes.bridge.model.unet_loader")
    if kind == "unet":
        return [loader.load_model(path)]
    if kind == "host":
        return comfy.sd.load_checkpoint_guess_config(path, output_clipvision=True)
    parts = importlib.import_module(f"{pack}.nodes.bridge.model.checkpoint_parts")
    checkpoint = importlib.import_module(f"{pack}.unet").open_checkpoint(path)
    return [*vars(parts.load_parts(checkpoint)).values(), loader.load_checkpoint(checkpoint)]


def networks(loaded):
    """The networks in what was loaded."""
    for part in loaded:
        if part is not None:
            yield part.model if hasattr(part, "model") else part.patcher.model


def worker(kind: str, path: str, out: str):
    """Loads the file and reads every weight once; writes the most memory that it held, in MiB, to `out`."""
    pack = boot(os.environ["TEMPORAL_UNET_HOST"], extra_nodes=False)
    gc.collect()
    before, watch = status("RssAnon"), Peak()
    with torch.inference_mode():
        loaded = load(kind, pack, path)
        for network in networks(loaded):
            for parameter in network.parameters():
                parameter.flatten()[::256].sum()
    Path(out).write_text(json.dumps({"peak": watch.stop() - before, "after": status("RssAnon") - before}))


if __name__ == "__main__":
    worker(*sys.argv[1:])
