"""A MODEL on several devices of a machine that has one: the host takes "cpu" and "cpu:0" for two."""

import comfy.controlnet
import pytest
import torch

multigpu = pytest.mark.skipif(
    not hasattr(comfy.controlnet.ControlBase, "deepclone_multigpu"), reason="0.16.3 has no multi-GPU clones"
)


@pytest.fixture(autouse=True)
def one_kernel(pack, monkeypatch):
    """Weights that the host casts run by PyTorch's kernels alone, whose sums round otherwise than those of plain layers."""
    monkeypatch.setattr(pack("unet.onednn"), "pays", lambda form: False)
    monkeypatch.setattr(pack("unet.doubling"), "PIXELS", 2**40)
    monkeypatch.setattr(pack("unet.winograd"), "pays", lambda: False)


def clone_of(model, number: int = 0):
    """A clone with weights of its own, on the device "cpu:<number>"."""
    clone = model.deepclone_multigpu(new_load_device=torch.device(f"cpu:{number}"))
    clone.is_multigpu_base_clone = True
    return clone


def with_clones(model, clones: list):
    """The MODEL with these next to it, as the host's MultiGPU CFG Split leaves it."""
    model = model.clone()
    model.set_additional_models("multigpu", clones)
    return model
