"""A process that loads one UNet with our loader or the host's and measures it.

    python -m support.load_worker ours|host PATH DTYPE OUT
"""

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path

import torch

from support.families import FULL
from support.host_in_process import boot
from support.memory_status import PeakAnon, status


def worker(loader: str, path: str, dtype: str, out: str):
    """Loads the UNet in `path`, reads every weight once, samples three steps; writes what it saw to `out`.

    Memory is that of the first load; time the best of four, for filling fresh pages takes from one to four seconds.
    """
    pack = boot(os.environ["TEMPORAL_UNET_HOST"], extra_nodes=False)
    import comfy.model_management
    import comfy.sd

    from support.oracle import prompts, sample

    options = {} if dtype == "default" else {"dtype": getattr(torch, dtype)}
    ours = importlib.import_module(f"{pack}.nodes.bridge.model.unet_loader")
    load = comfy.sd.load_diffusion_model if loader == "host" else ours.load_model
    gc.collect()
    before, with_code, watch = status("RssAnon"), status("VmHWM"), PeakAnon()
    watch.start()

    def timed():
        start, work = time.perf_counter(), time.process_time()
        model = load(path, model_options=options)
        loaded = time.perf_counter() - start
        for parameter in model.model.diffusion_model.parameters():
            parameter.flatten()[::256].sum()
        return model, (loaded, time.perf_counter() - start, time.process_time() - work)

    with torch.inference_mode():
        model, first = timed()
        report = {"peak anon": watch.stop() - before, "peak": status("VmHWM") - with_code, "dtype": str(model.model.get_dtype())}
        name = "svd" if "svd" in Path(path).name else "sd1"
        report["latent"] = sample(model, *prompts(FULL[name]), frames=3 if name == "svd" else 1, steps=3, cfg=1.0).tolist()
        times = [first]
        for _ in range(3):
            del model
            comfy.model_management.unload_all_models()
            gc.collect()
            model, again = timed()
            times.append(again)
        report |= dict(zip(("load", "load and read", "CPU seconds"), map(min, zip(*times, strict=True)), strict=True))
    Path(out).write_text(json.dumps(report))


if __name__ == "__main__":
    worker(*sys.argv[1:])
