"""Our controls in the apply node of Advanced-ControlNet."""

from ..node_names import APPLY_RESIDUALS


def _refuse(setting: str):
    raise ValueError(
        f"Apply Advanced ControlNet: {setting} acts on the ControlNets that Advanced-ControlNet itself makes, this one is from "
        f"Load ControlNet. Disconnect it, or use {APPLY_RESIDUALS}, which has strengths of frames, a range of steps and a mask."
    )


class TakenForAdvanced:
    """What Advanced-ControlNet asks of a control that has `sub_idxs`, since it takes each of them for one of its own.

    Its settings raise ValueError: nothing in our controls would act on them.
    """

    require_vae = allow_condhint_latents = postpone_condhint_latents_check = False

    weights_override = property(fset=lambda self, value: _refuse("weights_override"))
    latent_keyframe_override = property(fset=lambda self, value: _refuse("latent_kf_override"))

    def disarm(self):
        """The node is the right one for this control."""

    def verify_all_weights(self):
        """There are none."""

    def set_timestep_keyframes(self, keyframes):
        _refuse("timestep_kf")

    def set_cond_hint_mask(self, mask):
        _refuse("mask_optional")
