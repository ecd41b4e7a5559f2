"""The host's ControlNets on video and batches: hints and strengths follow the frames, also inside context windows."""

import comfy.controlnet
import comfy.utils
import torch

from .curve import evaluate_curve

CONTEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2 or SVD", 1280: "SDXL refiner", 2048: "SDXL"}
FLAT = [(0.0, 1.0)]


class FrameControl(comfy.controlnet.ControlBase):
    """A CONTROL_NET of the host whose residuals follow the frames of a clip.

    images [1 or frames, c, h, w]: one for all frames, or one each. `curve` weighs the frames (positions over the clip),
    `mask` [1 or frames, h, w] weighs pixels. The inner net's residuals are not changed in place.
    """

    def __init__(self, inner, images: torch.Tensor, curve=FLAT, mask: torch.Tensor | None = None):
        super().__init__()
        self.inner = inner
        self.images = images
        self.curve = curve
        self.mask = mask
        self.extra_hooks = inner.extra_hooks
        self.shown: tuple[list[int], int] | None = None  # the frames, and rows, whose images the inner net holds

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        _check_pairing(self.inner, model)
        self.inner.pre_run(model, percent_to_timestep_function)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        frames, total = _frames(x_noisy.shape[0] // batched_number, transformer_options)
        self._show(frames, total, x_noisy.shape[0])
        control = self.inner.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if control is None:
            return previous
        weights = self._weights(frames, total)
        if weights is not None:
            control = {place: [_weigh(r, weights, batched_number) for r in rs] for place, rs in control.items()}
        return control if previous is None else _merge(previous, control)

    def _show(self, frames, total, rows):
        """Gives the inner net the images of these frames; it prepares them anew only when frames or rows change.

        (A T2I-Adapter of the host keeps residuals for the rows of its first call.)
        """
        count = self.images.shape[0]
        if count not in (1, total):
            raise ValueError(
                f"Apply ControlNet Residuals: found {count} control images for {total} frames; expected 1 (for all "
                f"frames) or {total} (one per frame)."
            )
        if count == 1 or self.shown == (frames, rows):
            return
        self.shown = frames, rows
        self.inner.cond_hint_original = self.images[frames]
        self.inner.cond_hint = None

    def _weights(self, frames, total):
        """[t, 1, h, w] with h, w of the mask (or 1), or None where every weight is 1."""
        if self.curve == FLAT and self.mask is None:
            return None
        weights = torch.from_numpy(evaluate_curve(self.curve, total))[frames].float().reshape(-1, 1, 1, 1)
        if self.mask is None:
            return weights
        if self.mask.shape[0] not in (1, total):
            raise ValueError(
                f"Apply ControlNet Residuals: found {self.mask.shape[0]} masks for {total} frames; expected 1 or {total}."
            )
        mask = self.mask if self.mask.shape[0] == 1 else self.mask[frames]
        return weights * mask[:, None]

    def get_models(self):
        return super().get_models() + self.inner.get_models()

    def inference_memory_requirements(self, dtype):
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)

    def cleanup(self):
        super().cleanup()
        self.inner.cleanup()
        self.shown = None

    def copy(self):
        copy = FrameControl(self.inner.copy(), self.images, self.curve, self.mask)
        self.copy_to(copy)
        return copy

    def deepclone_multigpu(self, load_device, autoregister=False):
        clone = self.copy()
        clone.inner = self.inner.deepclone_multigpu(load_device)
        if autoregister:
            self.multigpu_clones[load_device] = clone
        return clone


def _frames(count, transformer_options):
    """(indices in the clip of the `count` frames at hand, frames of the whole clip).

    In the host's context windows the frames are the window's, after an anchor frame that it may prepend.
    """
    window = transformer_options.get("context_window")
    if window is None:
        return list(range(count)), count
    frames = list(window.index_list)
    if len(frames) < count:
        frames = [window.causal_anchor_index, *frames]
    return frames, window.total_frames


def _weigh(residual, weights, batched_number):
    """residual [n, c, h, w] times the weights [t, 1, h', w'] of its frames, resized to it."""
    if residual is None:
        return None
    weights = weights.to(residual)
    if weights.shape[-1] > 1 or weights.shape[-2] > 1:
        weights = comfy.utils.common_upscale(weights, residual.shape[-1], residual.shape[-2], "bilinear", "disabled")
    return residual * weights.repeat(batched_number, 1, 1, 1)


def _merge(first, second):
    """The sum of two controls, place by place; a missing residual counts as zero."""
    merged = {}
    for place in ("input", "middle", "output"):
        a, b = first.get(place, []), second.get(place, [])
        length = max(len(a), len(b))
        pairs = zip(a + [None] * (length - len(a)), b + [None] * (length - len(b)))
        merged[place] = [y if x is None else x if y is None else x + y for x, y in pairs]
    return merged


def _check_pairing(control, model):
    """Refuses a ControlNet of another family before it runs: the width of the context it attends to tells."""
    found = _context_width(control)
    expected = model.model_config.unet_config.get("context_dim")
    if found is not None and found != expected:
        raise ValueError(
            f"Apply ControlNet Residuals: this ControlNet is for {CONTEXT_WIDTHS.get(found, f'context width {found}')}, "
            f"the model is {CONTEXT_WIDTHS.get(expected, f'of context width {expected}')} "
            f"({type(model).__name__}). Load a ControlNet that was trained for this model."
        )


def _context_width(control):
    """Width of the context that a ControlNet (or ControlLoRA) of the host attends to, None where it has none."""
    if isinstance(control, comfy.controlnet.ControlLora):
        tensors = control.control_weights.items()
    elif isinstance(control, comfy.controlnet.ControlNet):
        tensors = control.control_model.state_dict().items()
    else:
        return None
    return next((t.shape[1] for name, t in tensors if name.endswith(("attn2.to_k.weight", "attn2.to_k.down"))), None)
