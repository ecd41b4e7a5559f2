"""A process that loads one UNet with our loader or the host's and measures it.

    python -m support.load_worker ours|host ROUNDS PATH DTYPE OUT
"""

import gc
import importlib
import json
import os
import resource
import sys
from pathlib import Path

import torch

from support.families import FULL
from support.host_in_process import boot
from support.memory_status import Peak, status


def worker(loader: str, rounds: str, path: str, dtype: str, out: str):
    """Loads the UNet in `path`, reads every weight once, samples a step; writes what it saw to `out`.

    Memory is that of this first load. Then both loaders load it in turns, `rounds` times. "user seconds" are those of every load,
    by loader: the time that the process itself computed, without the system's, which is mostly that of filling fresh pages: from
    one to four seconds, or none where the allocator still has pages.
    """
    pack = boot(os.environ["TEMPORAL_UNET_HOST"], extra_nodes=False)
    import comfy.model_management
    import comfy.sd

    from support.oracle import prompts, sample

    options = {} if dtype == "default" else {"dtype": getattr(torch, dtype)}
    ours = importlib.import_module(f"{pack}.nodes.bridge.model.unet_loader")
    loaders = {"ours": ours.load_model, "host": comfy.sd.load_diffusion_model}

    def loaded(name):
        model = loaders[name](path, model_options=options)
        for parameter in model.model.diffusion_model.parameters():
            parameter.flatten()[::256].sum()
        return model

    def timed(name):
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        model = loaded(name)
        seconds[name].append(round(resource.getrusage(resource.RUSAGE_SELF).ru_utime - begun, 2))
        return model

    gc.collect()
    before, with_code, watch = status("RssAnon"), status("VmHWM"), Peak()
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    with torch.inference_mode():
        model = timed(loader)
        report = {"peak anon": watch.stop() - before, "peak": status("VmHWM") - with_code, "dtype": str(model.model.get_dtype())}
        name = Path(path).stem
        report["latent"] = sample(model, *prompts(FULL[name]), frames=3 if name == "svd" else 1, steps=1, cfg=1.0).tolist()
        del model
        for name in int(rounds) * list(loaders):
            comfy.model_management.unload_all_models()
            gc.collect()
            timed(name)
    report["user seconds"] = seconds
    Path(out).write_text(json.dumps(report))


if __name__ == "__main__":
    worker(*sys.argv[1:])
