"""A MODEL's network as it is to be saved: its weights with the patches (LoRA, merging) that the MODEL has, one by one."""

from collections.abc import Mapping
from dataclasses import replace

import comfy.lora
import comfy.model_management as management
import torch
from comfy.model_base import ModelType, Stable_Zero123, SVD_img2vid
from comfy.model_patcher import get_key_weight

from ....unet import detect
from ....unet.weights.checkpoint import check_keys, expected_shapes
from ....unet.weights.detect import HEAD_CHANNELS, check_head_count
from ....unet.weights.ggml_types import PackedTensor
from ....unet.weights.save_plan import Network, PlannedTensor, format_of
from .packed_weights import packed_values
from .trained_length import FRAMES_KEY
from .watched_files import refuse_changed

NETWORK = "diffusion_model."


class SavedNetwork:
    """What of a MODEL is saved, and the values of each tensor when it is asked for; the MODEL stays as it is.

    Raises UNetFileError where its network is none of the family, or is not whole, and ValueError as `refuse_changed`.
    """

    def __init__(self, patcher, metadata: Mapping[str, str]):
        refuse_changed(patcher)
        self._patcher = patcher
        parameters = dict(patcher.model.diffusion_model.named_parameters())
        metadata = {**metadata, **_own_metadata(patcher)}
        self._markers = _markers(patcher)
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        config, family, names = detect({**shapes, **{name: () for name in self._markers}}, metadata)
        heads = patcher.model.model_config.unet_config.get("num_heads", -1)
        if heads > 0:
            check_head_count(heads, family)
        expected = expected_shapes(config)
        check_keys({name: shapes[theirs] for name, theirs in names.items() if name in expected}, expected)
        self.config = config
        self.names = {name: names[name] for name in expected}  # the network's own key names to those of the MODEL's network
        formats = {name: self._format(theirs) for name, theirs in self.names.items()}
        self.network = Network(expected, formats, self._markers, metadata)

    def _format(self, theirs: str) -> str:
        packed = packed_weight(self._patcher, NETWORK + theirs)
        return packed.kind.name if packed else format_of(unpatched(self._patcher, NETWORK + theirs)[0].dtype)

    def values(self, tensor: PlannedTensor) -> torch.Tensor | PackedTensor:
        """The values of a tensor of the file, on the CPU; a GGUF weight that nothing patches comes as it is."""
        if tensor.name in self._markers:
            return self._markers[tensor.name]
        return weight_of(self._patcher, NETWORK + self.names[tensor.name])


def weight_of(patcher, key: str) -> torch.Tensor | PackedTensor:
    """A weight with the MODEL's patches, on the CPU; a GGUF weight that nothing patches comes as it is."""
    packed = packed_weight(patcher, key)
    return patched_weight(patcher, key) if packed is None else replace(packed, data=packed.data.cpu())


def packed_weight(patcher, key: str) -> PackedTensor | None:
    """A GGUF weight that the MODEL has no patches for, where it lies; None where a weight is another."""
    return None if patcher.patches.get(key) else packed_values(unpatched(patcher, key)[0])


def unpatched(patcher, key: str):
    """(a weight as it was loaded, the function of its layer that makes floats of it, or None).

    Where the weight on the device is patched already, perhaps by another MODEL, the host has kept the one that it was.
    """
    weight, _, convert = get_key_weight(patcher.model, key)
    if key in patcher.backup:
        weight = patcher.backup[key].weight
    if key in patcher.hook_backup:
        weight = patcher.hook_backup[key][0]
    return weight, convert


def patched_weight(patcher, key: str) -> torch.Tensor:
    """A weight with the MODEL's patches, on the CPU, in the dtype that the host patches in; it is not rounded to its own again."""
    weight, convert = unpatched(patcher, key)
    patches = patcher.patches.get(key)
    if patches:
        device = patcher.load_device
        weight = management.cast_to_device(weight, device, management.lora_compute_dtype(device), copy=True)
    if convert is not None:
        weight = convert(weight, inplace=bool(patches))
    if patches:
        weight = comfy.lora.calculate_weight(patches, weight, key)
    return weight.detach().cpu()


def _own_metadata(patcher) -> dict[str, str]:
    """What no tensor shows: the head width, and the clip length that a model was trained on."""
    metadata = {}
    heads = patcher.model.model_config.unet_config.get("num_head_channels", -1)
    if heads > 0:
        metadata[HEAD_CHANNELS] = str(heads)
    trained = patcher.get_attachment(FRAMES_KEY)
    if trained is not None:
        metadata[FRAMES_KEY] = str(trained)
    return metadata


def _markers(patcher) -> dict[str, torch.Tensor]:
    """The tensors from which the host detects how a model was trained, as its own Save Model writes them, and Zero123's layer."""
    model, sampling, markers = patcher.model, patcher.get_model_object("model_sampling"), {}
    if model.model_type == ModelType.EDM:
        markers["edm_mean"], markers["edm_std"] = model.latent_format.latents_mean, model.latent_format.latents_std
    elif model.model_type == ModelType.V_PREDICTION_EDM and not isinstance(model, SVD_img2vid):  # SVD is always so
        markers["edm_vpred.sigma_max"] = torch.tensor(float(sampling.sigma_max))
        markers["edm_vpred.sigma_min"] = torch.tensor(float(sampling.sigma_min))
    elif model.model_type == ModelType.V_PREDICTION:
        markers["v_pred"] = torch.tensor([])
        if sampling.zsnr:
            markers["ztsnr"] = torch.tensor([])
    if isinstance(model, Stable_Zero123):
        for name in ("cc_projection.weight", "cc_projection.bias"):
            markers[name] = patched_weight(patcher, name)
    return markers
