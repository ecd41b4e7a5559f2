"""What a file holds, by the names of its tensors alone: a UNet, in which layout, or which other kind of model."""

import re
from collections.abc import Collection
from dataclasses import dataclass

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
LORA = (
    r"\blora_(up|down|A|B)\b|[._]lora\.(up|down)\.|\.lora_linear_layer\.|\.(hada_w1_a|hada_w2_a|lokr_w1|lokr_w2|lokr_w1_a|lokr_w2_a)$"
    r"|^(lora_unet|lycoris)_"
)
ORIGINAL = (r"input_blocks\.", r"output_blocks\.")  # what a UNet in this layout has, and in diffusers'
DIFFUSERS = (r"down_blocks\.\d+\.resnets\.", r"up_blocks\.\d+\.resnets\.")
TEXT_TO_VIDEO = r"\b(temp_convs|temp_attentions|transformer_in)\."
MOTION = r"\bmotion_modules\."

# What people mistake for a UNet: a mark in the tensors' names, what it is, where it belongs.
CONTROLNET = "a ControlNet"
HOSTS_LOADERS = "Load it with the host's Load Diffusion Model node, or a full checkpoint with its Load Checkpoint."
OTHER_KINDS = (
    (LORA, "a LoRA", "Load it with a LoRA loader, on top of a UNet."),
    (r"^(model\.diffusion_model|diffusion_model|unet)\.(in|out)put_blocks\.", "a part of a UNet",
     "The file is damaged: get it again from its source."),
    (r"^control_model\.|^controlnet_|input_hint_block|^zero_convs\.", CONTROLNET, "Load it with a ControlNet loader."),
    (MOTION, "an AnimateDiff motion module", "It needs a UNet and AnimateDiff nodes."),
    (TEXT_TO_VIDEO, "a text-to-video UNet (ModelScope, Zeroscope)", "It needs nodes for that model."),
    (r"^(double_blocks|joint_blocks|model\.diffusion_model\.(double|joint)_blocks)\.|\bdouble_stream"
     r"|^(single_|joint_)?transformer_blocks\.\d", "a transformer (DiT)", HOSTS_LOADERS),
    (r"^(unet\.)?(down|up)_blocks\.\d+\.(resnets|attentions)\.", "a part of a UNet in diffusers' layout",
     "Get the other files of the same model, and put all into one folder."),
    (r"^((model\.)?diffusion_model|model\.model|net)\.", "a model of another family", HOSTS_LOADERS),  # with or without a VAE
    (r"^(text_model|vision_model|transformer\.resblocks|encoder\.block\.\d+\.layer)\b", "a text or image encoder",
     "Load it with a CLIP or CLIP Vision loader."),
    (r"^(first_stage_model\.)?(encoder|decoder)\.|^(taesd_)?(en|de)coder\.", "a VAE", "Load it with the Load VAE node."),
)


@dataclass(frozen=True)
class Layout:
    """How the names of a UNet are made: what stands before each, and whether they are diffusers' or the original's."""

    prefix: str
    diffusers: bool


def find_layout(names: Collection[str]) -> Layout | None:
    """The layout of the UNet among these tensors; None where there is none."""
    if _any(LORA, names):
        return None
    for blocks in (ORIGINAL, DIFFUSERS):
        for prefix in PREFIXES:
            if all(_any("^" + re.escape(prefix) + block, names) for block in blocks):
                diffusers = blocks is DIFFUSERS
                return None if diffusers and _any(f"{MOTION}|{TEXT_TO_VIDEO}", names) else Layout(prefix, diffusers)
    return None


def not_a_unet(names: Collection[str]) -> str | None:
    """What a file without a UNet of the family holds, and where that belongs; None where it is unknown."""
    return next((f"it holds {kind}, not a UNet. {advice}" for mark, kind, advice in OTHER_KINDS if _any(mark, names)), None)


def other_kind(names: Collection[str]) -> tuple[str, str] | None:
    """What a file that holds no ControlNet is, and where it belongs; None where that is unknown."""
    if find_layout(names) is not None:
        return "a UNet", "Load it with Load UNet, or its checkpoint with the loader of checkpoints."
    kinds = [kind for kind in OTHER_KINDS if kind[1] != CONTROLNET]
    return next(((kind, advice) for mark, kind, advice in kinds if _any(mark, names)), None)


def _any(mark: str, names: Collection[str]) -> bool:
    return any(map(re.compile(mark).search, names))
