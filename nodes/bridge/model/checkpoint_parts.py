"""What a full checkpoint holds besides its UNet: text encoder, VAE and image encoder, found by its header, loaded by the host."""

from dataclasses import dataclass
from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
import torch

from ....unet import Checkpoint, open_checkpoint
from ....unet.weights.errors import shorten
from ....unet.weights.files import has_safetensors_ending, is_as_it_ends
from ....unet.weights.ggml_types import is_quantized
from ..node_names import LOAD_CHECKPOINT, LOAD_UNET, SVD_IMAGE_TO_VIDEO
from .memory_budget import is_out_of_memory
from .unet_loader import host_config

CLIP, VAE, CLIP_VISION = "clip", "vae", "clip_vision"  # the parts, as the loader's outputs are called
UNFIT = (LookupError, TypeError, AttributeError, RuntimeError)  # how the host's loaders end where tensors lack or do not fit
LACKING = {  # part -> what a file lacks without it, and what to connect
    CLIP: ("text encoder (CLIP)", "Connect Load CLIP here instead."),
    VAE: ("VAE", "Connect Load VAE here instead."),
    CLIP_VISION: (
        "image encoder (CLIP Vision)",
        "Delete the link from the output clip_vision where the input is optional, as that of SVD Image to Video (inside of the "
        "blueprint, too), or connect Load CLIP Vision there.",
    ),
}


@dataclass(frozen=True)
class Parts:
    """The parts that were loaded, each as the host's own loaders give it; None where the file lacks it."""

    clip: Any = None
    vae: Any = None
    clip_vision: Any = None


def parts_in(checkpoint: Checkpoint) -> list[str]:
    """Which of CLIP, VAE and CLIP_VISION `load_parts` will find, in this order; reads the header only."""
    config, known = _hosts_config(checkpoint), host_knows(checkpoint)
    others = {name: torch.empty(checkpoint.shapes[name], device="meta") for name in _others(checkpoint)}
    found = []
    if known and config.clip_target(state_dict=others) is not None and config.process_clip_state_dict(dict(others)):
        found.append(CLIP)
    if _vae_tensors(config, others):
        found.append(VAE)
    prefix = config.clip_vision_prefix
    if known and prefix is not None and any(name.startswith(prefix) for name in others):
        found.append(CLIP_VISION)
    return found


def load_parts(checkpoint: Checkpoint) -> Parts:
    """CLIP, VAE and CLIP_VISION of an open file through the host's loader of checkpoints, which does not read the UNet then.

    With a UNet of a size that the host does not know, such as the miniature's, the VAE alone. Raises ValueError, which names the
    file, where a part is not whole.
    """
    found = parts_in(checkpoint)
    if not found:
        return Parts()
    try:
        return _load(checkpoint, found)
    except UNFIT as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{LOAD_CHECKPOINT}: {checkpoint.path.name}: the {' or the '.join(LACKING[part][0] for part in found)} in it cannot be "
            f"loaded ({shorten(' '.join(str(error).split()), 200)}). Get the file again, or load its UNet alone with {LOAD_UNET}."
        ) from error


def load_part(path: str, part: str, disable_dynamic: bool = False):
    """The patcher of a part of the file `path`, made again for another device; of a VAE the host alone decides whether dynamic."""
    return getattr(_load(open_checkpoint(path), [part], disable_dynamic), part).patcher


def _load(checkpoint: Checkpoint, found: list[str], disable_dynamic: bool = False) -> Parts:
    if not host_knows(checkpoint):
        return Parts(vae=_made_again(_load_vae(checkpoint), checkpoint, VAE))
    options = {
        "output_model": False, "output_clip": CLIP in found, "output_vae": VAE in found, "output_clipvision": CLIP_VISION in found,
        "embedding_directory": folder_paths.get_folder_paths("embeddings"), "disable_dynamic": disable_dynamic,
    }
    if has_safetensors_ending(checkpoint.path) and is_as_it_ends(checkpoint.path, checkpoint.file):
        _, clip, vae, clip_vision = comfy.sd.load_checkpoint_guess_config(str(checkpoint.path), **options)
        return Parts(clip, _usable(vae), clip_vision)
    # What the host would take for another kind, or a part, or unpickle with all that is in it.
    tensors = _unet_outline(checkpoint) | _tensors_beside(checkpoint)
    _, clip, vae, clip_vision = comfy.sd.load_state_dict_guess_config(tensors, metadata=checkpoint.metadata, **options)
    return Parts(_made_again(clip, checkpoint, CLIP), _made_again(_usable(vae), checkpoint, VAE), clip_vision)


def _usable(vae):
    """None in place of a VAE that the host could make nothing of."""
    return None if vae is None or vae.first_stage_model is None else vae


def _made_again(loaded, checkpoint: Checkpoint, part: str):
    """Tells the host how to make a part's patcher again."""
    if loaded is not None:
        loaded.patcher.cached_patcher_init = (load_part, (str(checkpoint.path), part))
    return loaded


def _unet_outline(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The UNet's tensors without values, in the network's shapes: what the host detects it by."""
    shapes = {on_disk: checkpoint.reshaped.get(name, checkpoint.shapes[on_disk]) for name, on_disk in checkpoint.names.items()}
    return {on_disk: torch.empty(shape, dtype=torch.float16, device="meta") for on_disk, shape in shapes.items()}


def _tensors_beside(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors of the other models, by their names in the file.

    Kernels over frames, of which stable-diffusion.cpp writes the first two dimensions as one, have five again: a bias has as many
    values as come out.
    """
    prefix = comfy.model_detection.unet_prefix_from_state_dict(checkpoint.shapes)
    tensors = {name: _read(checkpoint, name) for name in _others(checkpoint) if not name.startswith(prefix)}
    if checkpoint.dialect == "sdcpp":
        for name, tensor in tensors.items():
            bias = tensors.get(name.removesuffix("weight") + "bias")
            if tensor.ndim == 4 and bias is not None and len(tensor) > len(bias):
                tensors[name] = tensor.unflatten(0, (len(bias), -1))
    return tensors


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A tensor by its name in the file. What a GGUF file has quantized is dequantized: matrices to fp16, as its scales are."""
    tensor = checkpoint.tensor(name)
    return tensor.half() if is_quantized(checkpoint.dtypes[name]) and tensor.ndim > 1 else tensor


def lacking(checkpoint: Checkpoint, part: str) -> str:
    """The sentence for whoever uses a part that the file lacks."""
    what, advice = LACKING[part]
    if part == CLIP and checkpoint.config.temporal:
        advice = f"A video model takes none: connect {SVD_IMAGE_TO_VIDEO} to its sampler."
    return f"{LOAD_CHECKPOINT}: {checkpoint.path.name} holds no {what} that can be used. {advice}"


def host_knows(checkpoint: Checkpoint) -> bool:
    """Does the host's loader of checkpoints detect the UNet? Else it would look for another model in the whole file."""
    prefix = comfy.model_detection.unet_prefix_from_state_dict(checkpoint.shapes)
    config = host_config(checkpoint.config)
    return all(name.startswith(prefix) for name in checkpoint.names.values()) and any(
        kind.matches(config, checkpoint.shapes) for kind in comfy.supported_models.models
    )


def _load_vae(checkpoint: Checkpoint):
    tensors = _vae_tensors(_hosts_config(checkpoint), _tensors_beside(checkpoint))
    return _usable(comfy.sd.VAE(sd=tensors, metadata=checkpoint.metadata))


def _vae_tensors(config, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The VAE's tensors among these, under the names of a file of its own."""
    prefixes = dict.fromkeys(config.vae_key_prefix, "")
    return config.process_vae_state_dict(comfy.utils.state_dict_prefix_replace(dict(tensors), prefixes, filter_keys=True))


def _hosts_config(checkpoint: Checkpoint):
    return getattr(comfy.supported_models, checkpoint.family.host)(host_config(checkpoint.config))


def _others(checkpoint: Checkpoint) -> list[str]:
    """The names of the tensors next to the UNet."""
    unet = set(checkpoint.names.values())
    return [name for name in checkpoint.shapes if name not in unet]
