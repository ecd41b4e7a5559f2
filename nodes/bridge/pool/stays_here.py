"""What acts inside a MODEL's network by code, which workers do not get."""

import torch
from comfy.patcher_extension import WrappersMP

from ..control.asked import ASKING
from ..control.controlnext_control import JoinFeature
from ..control.frame_control import nets_of
from ..control.stored_control import StoredControl
from ..control.svd_control import SVDControl
from ..model.feature_run import KEY as FEATURE_CACHE_KEY
from ..model.replaced_functions import changed_layers, of_a_pack
from ..node_names import FEATURE_CACHE
from ..node_names import RAY_POOL as NODE
from ..sampling.lanes import STATELESS


def stays_here(patcher, options: dict, conds) -> str | None:
    """What of a MODEL with these transformer_options, or of its conds, acts by code, for the user; None: nothing."""
    if any("hooks" in condition for conditions in conds for condition in conditions or ()):
        return "a hook on the conditioning"
    if any("gligen" in condition for conditions in conds for condition in conditions or ()):
        return "GLIGEN, which is code in the network"
    if (code := code_in(options)) is not None:
        return code
    objects = [name for name in (*patcher.object_patches, *patcher.weight_wrapper_patches) if name.startswith("diffusion_model")]
    if objects or patcher.injections:
        return f"what was put into the network: {', '.join([*objects, *patcher.injections])}"
    return None


def controls_stay_here(conds) -> bool:
    """Do controls on the host's conds compute on this machine, wherever the network is called?"""
    controls = {condition.get("control") for conditions in conds for condition in conditions or ()}
    return any(_computes_here(net) for control in controls for net in nets_of(control))


def _computes_here(net) -> bool:
    if isinstance(net, SVDControl):
        return not net.is_asked({ASKING: True})
    return not isinstance(net, StoredControl)


def code_in(options: dict) -> str | None:
    """What in the transformer_options, of a MODEL or of one call, acts by code; a ControlNeXt's feature is sent."""
    if FEATURE_CACHE_KEY in options:
        return f"what {FEATURE_CACHE} keeps"
    if "optimized_attention_override" in options:
        return "a replaced attention"
    functions = [function for patches in options.get("patches", {}).values() for function in patches]
    functions += [function for places in options.get("patches_replace", {}).values() for function in places.values()]
    wrappers = options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {})
    functions += [function for key, added in wrappers.items() if key not in STATELESS for function in added]
    names = sorted({_name(function) for function in functions if not isinstance(function, JoinFeature)})
    return f"the patches of {', '.join(names)}" if names else None


def replaced_in(network: torch.nn.Module) -> str | None:
    """What of the network's code packs have changed in place, for the user; None: nothing."""
    for name in ("forward_timestep_embed", "apply_control"):
        if (function := of_a_pack(name)) is not None:
            return f"what {_name(function)} put in the place of ComfyUI's {name}"
    changed = changed_layers(network)
    return f"the changed code of {', '.join(changed)}" if changed else None


def refusal(kept: str) -> str:
    return f"{NODE}: workers do not get {kept}. Take it out, or turn on use_this_gpu: then this machine computes alone."


def _name(function) -> str:
    """Of a patch: that of the node's class or module which made it."""
    where = getattr(function, "__qualname__", type(function).__qualname__)
    return where.split(".")[0]
