"""The host's dynamic way to load weights, by its own functions on a CPU."""

import comfy.cli_args
import comfy.memory_management
import comfy.model_patcher
import torch


def staged(monkeypatch, module, key, patches):
    """The layer as `ModelPatcherDynamic.load` leaves it, with plain memory for what aimdo would reserve on a card."""
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    size = comfy.memory_management.vram_aligned_size([module.weight, module.bias])
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_fault", lambda memory: 1)
    monkeypatch.setattr(comfy_aimdo.model_vbar, "vbar_signature_compare", lambda found, kept: found == kept)
    monkeypatch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda memory, device: memory)
    monkeypatch.setattr(comfy.cli_args.args, "disable_pinned_memory", True)  # an option of the host's
    module.comfy_cast_weights, module.seed_key, module._v_signature = True, key, None
    module._pin_state, module.pin_failed = None, False
    for name in ("weight", "bias"):
        full = f"{key}.{name}"
        setattr(module, f"{name}_lowvram_function", comfy.model_patcher.LowVramPatch(full, patches) if full in patches else None)
        setattr(module, f"{name}_function", [])
    module._v = torch.zeros(size, dtype=torch.uint8)
