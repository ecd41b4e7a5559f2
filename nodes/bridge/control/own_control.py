"""What the controls of this pack share: their call in a chain, their copies, a clean start and end of a run, the frames at hand."""

import comfy.controlnet
import torch
from comfy.patcher_extension import CallbacksMP

from .advanced_controlnet import TakenForAdvanced
from .asked import together


def frames_of(count: int, transformer_options: dict) -> tuple[list[int], int]:
    """(indices in the clip of the `count` frames at hand, frames of the whole clip).

    In the host's context windows the frames are the window's, after an anchor frame that it may prepend. AnimateDiff-Evolved
    lists those of its contexts in "ad_params".
    """
    contexts = transformer_options.get("ad_params")
    if contexts is not None and contexts["sub_idxs"] is not None:
        return list(contexts["sub_idxs"]), contexts["full_length"]
    window = transformer_options.get("context_window")
    if window is None:
        return list(range(count)), count
    frames = list(window.index_list)
    if len(frames) < count:
        frames = [window.causal_anchor_index, *frames]
    return frames, window.total_frames


class OwnControl(TakenForAdvanced, comfy.controlnet.ControlBase):
    """One use of a control in a chain. A subclass says what it adds (`act`) and how another use of it is made (`another`).

    It keeps nothing from one run to the next, however the last one ended: the host calls `cleanup` only after a run that ended
    well. So `release` runs at the start of each run and again at its end: the second call is a callback of the MODEL's patcher,
    which the host also calls after an error or a cancel.

    Packs that run clips in sliding contexts of their own (AnimateDiff-Evolved) set `sub_idxs`, the indices of the frames at hand,
    and two lengths before each call, and refuse controls without these attributes.
    """

    sub_idxs: list[int] | None = None
    full_latent_length = 0  # frames of the clip
    context_length = 0

    chosen = False  # whether the control images already are one for each frame at hand: FrameControl chooses them itself
    hint_of: list[int] | None = None  # indices of the control images that `cond_hint` was made of

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        """The residuals of the controls before this one in the chain, with its own added inside its timestep range, or None."""
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if not self.acts(t):
            return previous
        own = self.act(x_noisy, t, cond, batched_number, transformer_options)
        if previous is None or own is None:
            return own if previous is None else previous
        return together(previous, own)

    def acts(self, t: torch.Tensor) -> bool:
        """Is the noise level in its timestep range?"""
        return self.timestep_range is None or bool(self.timestep_range[1] <= t[0] <= self.timestep_range[0])

    def act(self, x: torch.Tensor, t: torch.Tensor, cond: dict, videos: int, options: dict) -> dict | None:
        """The residuals of this control alone, with its strength: {"input", "middle", "output"} to lists of tensors or None.

        x [b*t, c, h, w] is the noisy latent of `videos` videos, t [b*t] their noise levels (sigma), `cond` the conditioning as
        the model will get it, `options` the call's transformer_options. None where it adds no residuals.
        """
        raise NotImplementedError

    def another(self, device: torch.device | None = None) -> "OwnControl":
        """A new use of the same networks, or of copies of them on `device`; `copy_to` then sets what the host knows of."""
        raise NotImplementedError

    def copy(self):
        other = self.another()
        self.copy_to(other)
        return other

    def deepclone_multigpu(self, load_device, autoregister=False):
        other = self.another(load_device)
        self.copy_to(other)
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        self.release()
        if model.current_patcher is not None:  # else the network is called by hand, outside of sampling
            self._release_after(model.current_patcher)

    def _release_after(self, patcher):
        key = f"temporal_unet.control.{id(self)}"

        def end(patcher):
            patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)
            self.release()

        patcher.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, key)  # positive and negative may share this control
        patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, key, end)

    def cleanup(self):
        super().cleanup()
        self.release()

    def release(self):
        """Drops what was prepared for a run, and what other packs set for its last call."""
        self.cond_hint = self.hint_of = None
        self.sub_idxs, self.full_latent_length, self.context_length = None, 0, 0

    def frames_of(self, count: int, transformer_options: dict) -> tuple[list[int], int]:
        """`frames_of`, or what another pack set for this call."""
        if self.sub_idxs is not None:
            return list(self.sub_idxs), self.full_latent_length
        return frames_of(count, transformer_options)

    def image_indices(self, count: int, transformer_options: dict) -> list[int]:
        """Indices in `cond_hint_original` of the images of the `count` frames at hand; a single image serves all.

        As in the host's ControlNets, too many are cut off, and too few are repeated from the first.
        """
        images = self.cond_hint_original.shape[0]
        if images == 1 or self.chosen:
            return list(range(images))
        return [frame % images for frame in self.frames_of(count, transformer_options)[0]]

    def has_hint_of(self, indices: list[int]) -> bool:
        """Whether `cond_hint` is that of these images. A FrameControl puts the right one there."""
        return self.cond_hint is not None and (self.chosen or self.hint_of == indices)
