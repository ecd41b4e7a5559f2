"""A VAE and its clones on the other devices that a clip was sampled on, where the host can make them."""

import copy
import logging

import comfy.model_management as management
import torch

from ..node_names import DECODE_VIDEO
from ..sampling.lanes import CLONES

DEVICES = "temporal_unet.devices"  # key in the sampler's latent: the devices of the MODEL and of its clones, where it has any


def devices_of(model) -> list[torch.device]:
    """The devices that windows and takes of this MODEL are shared out to; none where it has no clones."""
    clones = model.get_additional_models_with_key(CLONES)
    return [model.load_device, *(clone.load_device for clone in clones)] if clones else []


def vaes_on(vae, devices: list[torch.device], most: int) -> list:
    """The VAE, and clones of it on the others of `devices`, at most `most` in all; alone where it is on none of these itself.

    The VAE's patcher keeps its clones, as the host keeps those of a MODEL, so they are made once. They are read again from the
    VAE's file, and need as much memory on each device as the VAE itself. The log says where that cannot be.
    """
    others = [device for device in devices if device != vae.device][:most - 1]
    if vae.device not in devices or not others:
        return [vae]
    if vae.patcher.cached_patcher_init is None:
        logging.warning(
            "%s: works on %s alone: what loaded this VAE cannot make it again for the other devices that the clip was sampled on. "
            "Use Load VAE or Load Checkpoint.", DECODE_VIDEO, vae.device)
        return [vae]
    clones = {clone.load_device: clone for clone in vae.patcher.get_additional_models_with_key(CLONES)}
    for device in others:
        if device not in clones:
            clones[device] = vae.patcher.deepclone_multigpu(new_load_device=device)
    vae.patcher.set_additional_models(CLONES, list(clones.values()))
    return [vae, *(_with_patcher(vae, clones[device]) for device in others)]


def _with_patcher(vae, patcher):
    """The VAE with another patcher and its network, as the host's node Select VAE Device makes it."""
    vae = copy.copy(vae)
    vae.patcher, vae.first_stage_model, vae.device = patcher, patcher.model, patcher.load_device
    return vae


def on_device(device: torch.device):
    """A context in which a thread's kernels go to this device; for hosts that make clones, which alone have it."""
    return management.cuda_device_context(device)
