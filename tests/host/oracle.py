"""The host's own UNet and MODEL on given weights: what ours are compared with."""

import comfy.model_detection
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel


def host_unet_config(weights: dict, family) -> dict:
    """What the host itself detects in these weights, with what its class for the family adds."""
    detected = comfy.model_detection.detect_unet_config(weights, "")
    config_class = getattr(comfy.supported_models, family.host)
    detected.update(config_class.unet_extra_config)
    if family.name == "sd2_tiny":  # the host knows this one in diffusers' layout only
        detected["disable_self_attentions"] = [True, False, False]
    return detected


def host_unet(weights: dict, family, dtype=torch.float32) -> UNetModel:
    unet = UNetModel(**host_unet_config(weights, family), dtype=dtype, operations=comfy.ops.disable_weight_init)
    unet.load_state_dict(weights, strict=True)
    return unet.to(dtype).requires_grad_(False).eval()


def host_model(weights: dict, family, beside: dict | None = None):
    """The host's own MODEL on these weights, made as its loader makes it but without its check of the width."""
    model_config = getattr(comfy.supported_models, family.host)(comfy.model_detection.detect_unet_config(weights, ""))
    model_config.unet_config = host_unet_config(weights, family)
    model_config.set_inference_dtype(torch.float32, None)
    model = model_config.get_model({**weights, **(beside or {})}, "")
    model.load_model_weights(dict(weights), "")
    return comfy.model_patcher.ModelPatcher(
        model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    )
