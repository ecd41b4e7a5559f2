"""Nodes of the soak, a file that its server finds in `custom_nodes`: what the server holds, and inputs that no core node makes."""

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

import torch

OWN = "soak"


def ray_holds():
    """Bytes that the processes of Ray below this one hold: its actors, and all others; and of the store, which they share."""
    parents, held = {}, {"actors": 0, "ray": 0, "store": 0}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process that has ended since
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    for process in parents:
        above = process
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() != process:
            with contextlib.suppress(OSError):
                status = _status(process)
                whose = "actors" if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::Worker") else "ray"
                held[whose] += status.get("RssAnon:", 0)  # one that ended and was not waited for has none
                held["store"] = max(held["store"], status.get("RssShmem:", 0))
    return held


def _status(process):
    """Of /proc: sizes in bytes, and counts."""
    lines = [line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines()]
    counts = {name: int(count) for name, count in (line for line in lines if len(line) == 2) if count.isdigit()}
    return {**counts, **{line[0]: 1024 * int(line[1]) for line in lines if line[-1] == "kB"}}


class SoakHeld:
    """What the process holds once all garbage is collected, as the output `held`; `nonce` makes each question a new one."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "held", OWN, True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"nonce": ("INT", {"default": 0, "min": 0, "max": 2**31})}}

    def held(self, nonce):
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # else the allocator keeps what was freed
        storages = {}
        for value in gc.get_objects():
            # Subclasses (quantized ones) have no memory of their own, but consist of tensors that are counted.
            if type(value) in (torch.Tensor, torch.nn.Parameter) and value.device.type != "meta":
                storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        status = _status("self")
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("safetensors")}
        return {"ui": {"held": [{
            "resident": status["VmRSS:"], "anonymous": status["RssAnon:"], "tensors": sum(storages.values()),
            "threads": status["Threads:"], "files": len(os.listdir("/proc/self/fd")), "mapped": len(mapped), **ray_holds(),
        }]}}


class SoakAgain:
    """A conditioning as it came; another `nonce` has the nodes behind it run again, whose results the host may have kept."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "again", OWN

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "nonce": ("INT", {"default": 0, "min": 0, "max": 2**31})}}

    def again(self, conditioning, nonce):
        return (conditioning,)


class SoakText:
    """A text conditioning of random numbers of a seed."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", OWN

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"default": 768, "min": 1, "max": 8192}), "seed": ("INT", {"default": 0, "min": 0})}}

    def make(self, width, seed):
        return ([[torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed)), {}]],)


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (SoakHeld, SoakAgain, SoakText)}
