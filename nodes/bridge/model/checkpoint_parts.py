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


def _load(checkpoint: Checkpoint, found: list[str]) -> Parts:
    if not host_knows(checkpoint):
        return Parts(vae=_load_vae(checkpoint))
    options = {
        "output_model": False, "output_clip": CLIP in found, "output_vae": VAE in found, "output_clipvision": CLIP_VISION in found,
        "embedding_directory": folder_paths.get_folder_paths("embeddings"),
    }
    if has_safetensors_ending(checkpoint.path) and is_as_it_ends(checkpoint.path, checkpoint.file):
        _, clip, vae, clip_vision = comfy.sd.load_checkpoint_guess_config(str(checkpoint.path), **options)
    else:  # what the host would take for another kind, or a part, or unpickle
        tensors = {name: checkpoint.tensor(name) for name in checkpoint.shapes}
        _, clip, vae, clip_vision = comfy.sd.load_state_dict_guess_config(tensors, metadata=checkpoint.metadata, **options)
    return Parts(clip, None if vae is None or vae.first_stage_model is None else vae, clip_vision)


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


def load_vae_patcher(path: str, disable_dynamic: bool = False):
    """The patcher of the VAE in the file `path`, made again for another device; the host alone decides whether it is dynamic."""
    return _load_vae(open_checkpoint(path)).patcher


def _load_vae(checkpoint: Checkpoint):
    tensors = _vae_tensors(_hosts_config(checkpoint), {name: checkpoint.tensor(name) for name in _others(checkpoint)})
    vae = comfy.sd.VAE(sd=tensors, metadata=checkpoint.metadata)
    if vae.first_stage_model is None:
        return None
    vae.patcher.cached_patcher_init = (load_vae_patcher, (str(checkpoint.path),))
    return vae


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
