"""LoRA files in every spelling of the public trainers, and the names of layers by tables that are not the pack's."""

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from safetensors.torch import save_file

from support.diffusers_names import to_diffusers
from support.oracle import run_node
from unet import UNetModel

STRENGTH = 0.75

# spelling -> which name of the layer, what stands between its parts, prefix, ends of up and down
SPELLINGS = {
    "ComfyUI": ("own", ".", "diffusion_model.", ".lora_up.weight", ".lora_down.weight"),
    "ComfyUI of a checkpoint": ("own", ".", "model.diffusion_model.", ".lora_up.weight", ".lora_down.weight"),
    "no prefix": ("own", ".", "", ".lora_B.weight", ".lora_A.weight"),
    "kohya of SDXL": ("own", "_", "lora_unet_", ".lora_up.weight", ".lora_down.weight"),
    "kohya": ("theirs", "_", "lora_unet_", ".lora_up.weight", ".lora_down.weight"),
    "LyCORIS": ("theirs", "_", "lycoris_", ".lora_up.weight", ".lora_down.weight"),
    "diffusers": ("theirs", ".", "unet.", ".lora.up.weight", ".lora.down.weight"),  # SVD_Xtend too
    "diffusers of today": ("theirs", ".", "unet.", ".lora_B.weight", ".lora_A.weight"),
    "diffusers' linear layers": ("theirs", ".", "unet.", ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    "PEFT": ("theirs", ".", "base_model.model.", ".lora_B.weight", ".lora_A.weight"),
    "PEFT of an adapter": ("theirs", ".", "unet.base_model.model.", ".lora_B.default.weight", ".lora_A.default.weight"),
    "old processors": ("processor", ".", "unet.", "_lora.up.weight", "_lora.down.weight"),
}


def diffusers_paths(config, host_config: dict) -> dict[str, str]:
    """The path of each layer with a weight in diffusers' layout, by the host's table or, for video, by one that is in the tests."""
    names = [name for name in UNetModel(config, device="meta").state_dict() if name.endswith(".weight")]
    if config.temporal:
        return {name.removesuffix(".weight"): to_diffusers(name).removesuffix(".weight") for name in names}
    vector = "class_embedding" if config.context_dim == 1024 else "add_embedding"  # the host has both for all
    host = comfy.utils.unet_to_diffusers(host_config).items()
    table = {own: theirs for theirs, own in host if "label_emb" not in own or vector in theirs}
    table["label_emb.weight"] = "class_embedding.weight"  # of the x4 upscaler, which the host does not have
    return {name.removesuffix(".weight"): table[name].removesuffix(".weight") for name in names}


def keys(spelling: str, own: str, theirs: str) -> tuple[str, str, str]:
    """The keys of up, down and alpha of a layer; those of old processors where it has one, else of diffusers."""
    name, between, prefix, up, down = SPELLINGS[spelling]
    if name == "processor" and ".to_" not in theirs:
        return keys("diffusers", own, theirs)
    head, _, projection = theirs.removesuffix(".0" if ".to_out" in theirs else "").rpartition(".")
    path = {"own": own, "theirs": theirs, "processor": f"{head}.processor.{projection}"}[name]
    path = prefix + path.replace(".", between)
    return path + up, path + down, path + ".alpha"


def factors(shape, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Up and down for a weight of this shape; of convolutions as kernels, as trainers save them."""
    ones = [1] * (len(shape) - 2)
    up = torch.randn(shape[0], rank, *ones, generator=generator)
    return up, torch.randn(rank, *shape[1:], generator=generator) * shape[1] ** -0.5


def product(up: torch.Tensor, down: torch.Tensor, shape) -> torch.Tensor:
    return (up.double().flatten(1) @ down.double().flatten(1)).reshape(shape)


def loader(node, folder, monkeypatch):
    """A function that runs Load LoRA on a file in `folder`; it returns the MODEL and the info."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors", ".pt"}))

    def load(model, tensors, strength=STRENGTH, metadata=None, name="l.safetensors"):
        if isinstance(tensors, dict):
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata)
        else:
            torch.save(tensors, folder / name)
        folder_paths.filename_list_cache.clear()
        return run_node(node("TemporalUNetLoraLoader"), model, name, strength)

    return load


def weights_of(model) -> dict[str, torch.Tensor]:
    """The weights with which a MODEL computes, as they are on the device, without the host's prefix."""
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    state = model.model.diffusion_model.state_dict()
    return {name: value.clone() for name, value in state.items()}
