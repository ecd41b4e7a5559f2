"""Which ControlNet goes with which model."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.supported_models
import comfy.t2i_adapter.adapter

from ....unet import FAMILIES, Levels

CONTEXT_WIDTHS: dict[int | None, str] = {
    768: "Stable Diffusion 1", 1024: "Stable Diffusion 2 or SVD", 1280: "SDXL refiner", 2048: "SDXL",
}


class WrongModelError(ValueError):
    """A control cannot run with the model at hand. The message says why and what to do; who knows the node adds its name."""


def check_family(control, model) -> None:
    """Raises WrongModelError for a control of the host that was made for another network than the BaseModel `model` has.

    The host itself would run it, and end in a matrix product that does not fit, in noise, or without what does not fit.
    """
    kind = _other_kind(control, model.model_config.unet_config)
    if kind is not None:
        raise WrongModelError(
            f"this ControlNet is {kind}, the model is {family_name(model)}. Load a ControlNet that was trained for this model."
        )
    if type(control) is comfy.controlnet.ControlNet and isinstance(control.control_model, comfy.cldm.cldm.ControlNet):
        net = control.control_model
        check_layout(model, Levels(net.model_channels, tuple(net.channel_mult), tuple(net.num_res_blocks)))


def check_video(model, kind: str) -> None:
    """Raises WrongModelError where the BaseModel `model` is none of video; `kind` of control is made for such alone."""
    if not model.model_config.unet_config.get("use_temporal_attention"):
        raise WrongModelError(
            f"this {kind} is for Stable Video Diffusion, the model is {family_name(model)}. Load an SVD model, or a ControlNet "
            f"that was trained for this one."
        )


def levels_of(model) -> Levels:
    """The levels of the UNet that a BaseModel has."""
    config = model.model_config.unet_config
    return Levels(config["model_channels"], tuple(config["channel_mult"]), tuple(config["num_res_blocks"]))


def check_layout(model, levels: Levels) -> None:
    """Raises WrongModelError where the BaseModel `model` has other levels or widths than a ControlNet with these levels."""
    found, expected = _describe(levels), _describe(levels_of(model))
    if found != expected:
        raise WrongModelError(
            f"this ControlNet is for a UNet with {found}, the model has {expected}. Load the UNet that it was trained with, or "
            f"a ControlNet that was trained for this one."
        )


def _describe(levels):
    return f"channels {levels.level_channels} in {list(levels.num_res_blocks)} blocks"


def families_of(context_width: int | None) -> list[str]:
    """The names in `unet.FAMILIES` of the models that attend to a context of this width; none where it is None."""
    configs = {family.name: getattr(comfy.supported_models, family.host).unet_config for family in FAMILIES}
    return [name for name, config in configs.items() if config.get("context_dim", 1024) == context_width]  # LotusD names no width


def family_name(model) -> str:
    """What a BaseModel is."""
    config = model.model_config.unet_config
    width = config.get("context_dim")
    if width == 1024:
        return "Stable Video Diffusion" if config.get("use_temporal_attention") else "Stable Diffusion 2"
    return CONTEXT_WIDTHS.get(width, "of another family" if width is None else f"of context width {width}")


def _other_kind(control, config: dict) -> str | None:
    """What a control of the host is, where it is not for the UNet of this config (or None)."""
    width, temporal = config.get("context_dim"), config.get("use_temporal_attention")
    if isinstance(control, comfy.controlnet.T2IAdapter):
        return _other_adapter(control.t2i_model, width, temporal, config.get("num_res_blocks", ()))
    if isinstance(control, comfy.controlnet.ControlLora) and temporal:
        return "a ControlLoRA, which completes itself from the UNet of an image model"
    found = _context_width(control)
    return None if found in (None, width) else f"for {CONTEXT_WIDTHS.get(found, f'context width {found}')}"


def _other_adapter(adapter, width, temporal, num_res_blocks):
    """A T2I-Adapter attends to nothing, but its layout is SDXL's or that of SD 1 (and 2), which have two blocks a level."""
    whole = set(num_res_blocks) == {2}
    if isinstance(adapter, comfy.t2i_adapter.adapter.Adapter) and adapter.xl:
        return None if width == 2048 and whole else "a T2I-Adapter for SDXL"
    kinds = comfy.t2i_adapter.adapter.Adapter, comfy.t2i_adapter.adapter.Adapter_light
    if isinstance(adapter, kinds) and (temporal or width not in (768, 1024) or not whole):
        return "a T2I-Adapter for Stable Diffusion 1"
    return None


def _context_width(control):
    """Width of the context that a ControlNet (or ControlLoRA) of the host attends to, None where it has none."""
    if isinstance(control, comfy.controlnet.ControlLora):
        tensors = control.control_weights.items()
    elif type(control) is comfy.controlnet.ControlNet:  # ours, which inherit from it, tell for themselves
        tensors = control.control_model.state_dict().items()
    else:
        return None
    return next((t.shape[1] for name, t in tensors if name.endswith(("attn2.to_k.weight", "attn2.to_k.down"))), None)
