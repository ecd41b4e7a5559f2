"""The host's ControlNets on video and batches: hints and strengths follow the frames, also inside context windows."""

from dataclasses import replace

import comfy.controlnet
import torch

from .asked import ASKING, Asked
from .frame_weights import Curve, FrameWeights, indices_for, log_surplus
from .kept_hints import KeptHints
from .own_control import OwnControl
from .pairing import WrongModelError, check_family
from .svd_control import SVDControl


class WeighsItself(OwnControl):
    """A control that acts in another way than by residuals, and so weighs frames and regions itself.

    FrameControl sets `frame_weights` before each of its calls: [t, 1, h, w] fp32 on the CPU (h, w of the mask, or 1) for
    the t frames at hand, or None where every weight is 1.
    """

    frame_weights: torch.Tensor | None = None


def nets_of(control):
    """Each control of a chain (None: of none), from its last one on: what is in a FrameControl in place of that."""
    while control is not None:
        yield control.inner if isinstance(control, FrameControl) else control
        control = control.previous_controlnet


class FrameControl(OwnControl):
    """A CONTROL_NET of the host whose residuals follow the frames of a clip.

    images [n, c, h, w] from 0 to 1: one for all frames, or one each (of fewer the last one stays, of more the first are used);
    None where the inner control needs none. `curve` weighs the frames (positions over the clip; None: each by 1), `mask`
    [n, h, w], which follows the frames as the images do, weighs pixels. The inner net's residuals are not changed in place.
    `node`: the one that made it, named in errors.

    A control of another pack with `sub_idxs` (Advanced-ControlNet) chooses and scales its images by itself, and is told the frames.
    """

    def __init__(
        self, node: str, inner: comfy.controlnet.ControlBase, images: torch.Tensor | None, curve: Curve | None = None,
        mask: torch.Tensor | None = None,
    ):
        super().__init__()
        self.node = node
        self.inner = inner
        self.images = images
        self.curve = curve
        self.mask = mask
        self.extra_hooks = inner.extra_hooks
        self.inner_ran = False
        self.inner_chooses = hasattr(inner, "sub_idxs") and not isinstance(inner, OwnControl)
        if isinstance(inner, OwnControl):
            inner.chosen = True
        self._forget()

    def _forget(self):
        self.weights: FrameWeights | None = None
        self.hints = None if self.images is None or self.inner_chooses else KeptHints(self.images)
        self.shown = None  # the images, size and videos for which the inner net is ready
        self.noted = False  # that there are more images than frames

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        try:
            check_family(self.inner, model)
            self.inner.pre_run(model, percent_to_timestep_function)
        except WrongModelError as error:
            raise ValueError(f"{self.node}: {error}") from None
        self.inner_ran = True

    def release(self):
        super().release()
        self._forget()
        if self.inner_ran:  # a ControlLora cannot clean up before its first run
            self.inner_ran = False
            self.inner.cleanup()
            if self.images is not None:
                self.inner.cond_hint_original = self.images  # not a copy of those that were shown last
            if isinstance(self.inner, comfy.controlnet.T2IAdapter):
                self.inner.control_input = None  # its residuals on the device, which its own cleanup leaves there

    def act(self, x, t, cond, videos, options):
        frames, total = self.frames_of(x.shape[0] // videos, options)
        if isinstance(self.inner, SVDControl) and self.inner.is_asked(options):
            return self._asked(frames, total, x, t, cond, videos, options)
        return self._computed(frames, total, x, t, cond, videos, options)

    def _asked(self, frames, total, x, t, cond, videos, options):
        """What the inner net is to compute, wherever the UNet runs; or None."""
        if not self.inner.acts(t):
            return None
        self._note_surplus(total)
        weights, plain = self._weights(total), {key: value for key, value in options.items() if key != ASKING}
        term = self.inner.asked(x, t, cond, self.images, self._indices(frames))
        if weights is not None:
            term = replace(term, weights=weights.at_sizes(frames, self.inner.residual_sizes(x), term.rows["x"]))
        cond = dict(cond)  # the host puts what this returns into its own
        return Asked([term], lambda: self._computed(frames, total, x, t, cond, videos, plain))

    def _computed(self, frames, total, x, t, cond, videos, options):
        if isinstance(self.inner, OwnControl):
            self.inner.sub_idxs, self.inner.full_latent_length = self.sub_idxs, self.full_latent_length
        elif self.inner_chooses:
            self.inner.sub_idxs = None if frames == list(range(total)) else frames
            self.inner.full_latent_length, self.inner.context_length = total, len(frames)
            if "num_video_frames" in cond:  # the host's own count leaves out a frame that its windows prepend
                cond = {**cond, "num_video_frames": len(frames)}
        weights = self._weights(total)
        weighs_itself = isinstance(self.inner, WeighsItself)
        if weighs_itself:
            self.inner.frame_weights = None if weights is None else weights.of(frames)
        self._show(frames, total, x, videos)
        control = self.inner.get_control(x, t, cond, videos, options)
        if control is None or weights is None or weighs_itself:
            return control
        return {place: [weights.apply(r, frames, videos) for r in rs] for place, rs in control.items()}

    def _show(self, frames, total, x, videos):
        """Gives the inner net the images of these frames, already prepared where it prepared them before.

        (A T2I-Adapter of the host keeps residuals for the rows of its first call.)
        """
        if self.images is None:
            return
        self._note_surplus(total)
        if self.inner_chooses:
            self.shown = frames
            return
        indices = self._indices(frames)
        shown = indices, x.shape[2:], videos
        if self.shown == shown:
            return
        if self.shown is not None:
            self.hints.keep(self.inner, *self.shown[:2])
        self.shown = None  # until the images are ready: preparing them may fail
        self.inner.cond_hint_original = self.images[indices]
        if not self.hints.give(self.inner, *shown, x.device):
            self.inner.cond_hint = None
        self.shown = shown

    def _indices(self, frames):
        return [0] if len(self.images) == 1 else indices_for(len(self.images), frames)

    def _note_surplus(self, total):
        if not self.noted:
            log_surplus(self.node, "control images", len(self.images), total)
        self.noted = True

    def _weights(self, total):
        """The clip's weights, or None where every one is 1."""
        if self.curve is None and self.mask is None:
            return None
        if self.weights is None or self.weights.total != total:
            log_surplus(self.node, "masks", 0 if self.mask is None else len(self.mask), total)
            self.weights = FrameWeights(self.curve, self.mask, total)
        return self.weights

    def get_models(self):
        return super().get_models() + self.inner.get_models()

    def inference_memory_requirements(self, dtype):
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)

    def another(self, device=None):
        inner = self.inner.copy() if device is None else self.inner.deepclone_multigpu(device)
        return FrameControl(self.node, inner, self.images, self.curve, self.mask)
