"""Classifier-free guidance with a scale of its own for every frame, in the host's sampling runs."""

import logging
import math
from types import FunctionType

import comfy.model_base
import comfy.patcher_extension
import comfy.samplers
import torch

from ..inputs.curve import evaluate_curve
from ..node_names import SVD_SAMPLER
from .lanes import warn_where_windows_wait

FORMULA = "sampler_cfg_function"  # key in model_options: how a node mixes both predictions,
NEGATIVE_ALWAYS = "disable_cfg1_optimization"  # is the negative evaluated where guidance does not need it?
AROUND = ("sampler_pre_cfg_function", "sampler_post_cfg_function")  # what nodes do to them before, and to the result


PREDICT_NOISE = comfy.patcher_extension.WrappersMP.PREDICT_NOISE


def is_video_model(model) -> bool:
    """True for a MODEL of the SVD family, ours or one that the host loaded."""
    return isinstance(model.model, comfy.model_base.SVD_img2vid)


def frame_scales(shape: str, min_cfg: float, max_cfg: float, curve: list[tuple[float, float]], frames: int) -> torch.Tensor:
    """The guidance scale of each frame [frames], fp32.

    "linear" rises from min to max as the host's VideoLinearCFGGuidance, "triangle" rises to max in the middle and falls
    again as its VideoTriangleCFGGuidance, "constant" is max throughout, "curve" takes the scales from the curve.
    """
    if shape == "linear":
        return torch.linspace(min_cfg, max_cfg, frames)
    if shape == "triangle":
        position = torch.linspace(0, 1, frames)
        height = 2 * (position - torch.floor(position + 0.5)).abs()
        return height * (max_cfg - min_cfg) + min_cfg
    if shape == "constant":
        return torch.full((frames,), max_cfg)
    return torch.from_numpy(evaluate_curve(curve, frames)).float()


class FrameGuider(comfy.samplers.CFGGuider):
    """The host's guider with per-frame scales [frames], acting from `start` to `end` (shares of the steps).

    Outside that share, and where every scale is 1, the negative is not evaluated, unless a sampler or a node on the model
    asks for it. Where all scales are equal this is the host's guider. Guidance nodes on the model act as they do there, each
    frame with its own scale; those that bring scales of the frames are left out, with a line in the log.
    """

    def __init__(self, patcher, scales: torch.Tensor, start: float, end: float):
        super().__init__(patcher)
        self.scales = None if torch.all(scales == scales[0]) else scales
        self.start, self.end = start, end
        self.set_cfg(scales.max().item())
        formula = patcher.model_options.get(FORMULA)
        if self.scales is not None and _sets_frame_scales(formula):
            logging.warning(
                "%s: the node %s on the model is left out, since this sampler sets the guidance of each frame. Take that node out, "
                "or set guidance to constant, where it acts.", SVD_SAMPLER, formula.__qualname__.split(".")[0],
            )

    def inner_sample(self, *args, **kwargs):
        warn_where_windows_wait(self.model_options, self.conds.values())
        return super().inner_sample(*args, **kwargs)

    def predict_noise(self, x, timestep, model_options, seed=None):
        scale, model_options = self._settings(timestep, model_options)
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, self.conds.get("negative"), self.conds.get("positive"), scale,
            model_options=model_options, seed=seed,
        )

    def _settings(self, timestep, model_options, frames=slice(None)):
        """(scale, model_options) with which the host guides these frames at the noise level timestep [t]."""
        if not self._guided(timestep, model_options["transformer_options"]["sample_sigmas"]):
            return 1.0, {key: value for key, value in model_options.items() if key != FORMULA}
        if self.scales is not None:  # the host leaves out the negative at a scale of exactly 1, which only the maximum is
            by_frame = _frame_by_frame(model_options, self.scales[frames])
            return self.cfg, {**model_options, **by_frame, NEGATIVE_ALWAYS: True}
        return self.cfg, model_options

    # What `predict_noise` does, in two halves, for some frames of the clip: which conds are to be evaluated, and their mix.

    def sees_whole_clip(self, model_options) -> bool:
        """Is there a function on the model that may look at more than a frame, or at the steps one after another?"""
        formula = model_options.get(FORMULA)
        wrappers = model_options["transformer_options"].get("wrappers", {}).get(PREDICT_NOISE, {})
        return (
            any(model_options.get(name) for name in (*AROUND, "denoise_mask_function")) or any(wrappers.values())
            or not (formula is None or self.scales is not None and _sets_frame_scales(formula))
        )

    def conds_at(self, timestep, model_options) -> list:
        """The conds to evaluate at the noise level timestep [t]: positive, and negative or None."""
        scale, model_options = self._settings(timestep, model_options)
        unguided = math.isclose(scale, 1.0) and not model_options.get(NEGATIVE_ALWAYS, False)
        return [self.conds.get("positive"), None if unguided else self.conds.get("negative")]

    def mixed(self, frames: list[int], x, timestep, made: list[torch.Tensor], model_options) -> torch.Tensor:
        """The denoised frames [n, 4, h, w] of x at the levels timestep [n], from what was made of both conds."""
        scale, model_options = self._settings(timestep, model_options, frames)
        return comfy.samplers.cfg_function(self.inner_model, *made, scale, x, timestep, model_options=model_options)

    def _guided(self, timestep, sigmas):
        """Is this step's share of the run (0 = first step) inside [start, end)? An end of 1 includes the last."""
        steps = len(sigmas) - 1
        step = int((sigmas[:-1] >= timestep[0] * (1 - 1e-5)).sum()) - 1
        share = max(step, 0) / steps
        return self.start <= share and (share < self.end or self.end >= 1)


def _sets_frame_scales(formula) -> bool:
    """Does the formula belong to one of the host's nodes that set the scale of each frame, as this module does?"""
    nodes = ("VideoLinearCFGGuidance.", "VideoTriangleCFGGuidance.")
    return isinstance(formula, FunctionType) and formula.__qualname__.startswith(nodes)


def _mix(args):
    return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])


def _frame_by_frame(model_options, scales):
    """The guidance functions in `model_options`, which get the scale of each frame [frames] instead of one for all."""
    formula = model_options.get(FORMULA, _mix)
    around = {name: [_with_scales(function, scales) for function in model_options.get(name, ())] for name in AROUND}
    return {FORMULA: _with_scales(_mix if _sets_frame_scales(formula) else formula, scales), **around}


def _with_scales(function, scales):
    """The function of a guidance node that is given `scales` as its "cond_scale".

    It gets them as a tensor, with which nearly every formula works unchanged. A function that takes only a number is called
    once for each scale, and each frame is taken from the call with its own scale.
    """

    def call(args, scale):
        lists = {"conds_out": list(args["conds_out"])} if "conds_out" in args else {}  # which functions write to
        return function({**args, **lists, "cond_scale": scale})

    def guide(args):
        try:
            return call(args, scales.to(args["input"].device, copy=True).reshape(-1, 1, 1, 1))
        except (RuntimeError, TypeError, ValueError):
            pass  # raised where a tensor is used as a number; any other error is raised again below
        out = None
        for scale in scales.unique().tolist():
            result = call(args, scale)
            results = result if isinstance(result, list) else [result]
            out = out or [one.clone() for one in results]
            for whole, one in zip(out, results, strict=True):
                whole[scales == scale] = one[scales == scale]
        return out if isinstance(result, list) else out[0]

    return guide
