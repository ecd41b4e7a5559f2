"""Nodes of the soak, a file that its server finds in `custom_nodes`: what the server holds, and inputs that no core node makes."""

import ctypes
import gc
import os
import sys
from pathlib import Path

import torch

OWN = "soak"


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
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("safetensors")}
        return {"ui": {"held": [{
            "resident": int(status["VmRSS"].split()[0]) * 1024, "anonymous": int(status["RssAnon"].split()[0]) * 1024,
            "tensors": sum(storages.values()), "threads": int(status["Threads"]), "files": len(os.listdir("/proc/self/fd")),
            "mapped": len(mapped),
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
