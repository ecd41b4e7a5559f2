"""What the controls of this pack share: a clean start and end of every run, and the frames of the clip that are at hand."""

import comfy.controlnet
from comfy.patcher_extension import CallbacksMP


def frames_of(count: int, transformer_options: dict) -> tuple[list[int], int]:
    """(indices in the clip of the `count` frames at hand, frames of the whole clip).

    In the host's context windows the frames are the window's, after an anchor frame that it may prepend. AnimateDiff-Evolved
    names those of its contexts in "ad_params".
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


class OwnControl(comfy.controlnet.ControlBase):
    """A control that keeps nothing from one run to the next, however the last one ended.

    The host calls `cleanup` only after a run that ended well. So every run begins with `release`, and ends with it by a callback
    of the MODEL's patcher, which the host calls after an error or a cancel too.

    Packs that run clips in sliding contexts of their own (AnimateDiff-Evolved) set `sub_idxs`, the indices of the frames at hand,
    and two lengths before each call, and refuse controls without these attributes.
    """

    sub_idxs: list[int] | None = None
    full_latent_length = 0  # frames of the clip
    context_length = 0

    chosen = False  # are the control images one for each frame at hand already? FrameControl chooses them itself
    hint_of: list[int] | None = None  # indices of the control images that `cond_hint` was made of

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
        """`frames_of`, where it was not set by another pack."""
        if self.sub_idxs is not None:
            return list(self.sub_idxs), self.full_latent_length
        return frames_of(count, transformer_options)

    def image_indices(self, count: int, transformer_options: dict) -> list[int]:
        """Which of `cond_hint_original` belong to the `count` frames at hand; one serves all.

        As in the host's ControlNets, too many are cut off, and too few are repeated from the first.
        """
        images = self.cond_hint_original.shape[0]
        if images == 1 or self.chosen:
            return list(range(images))
        return [frame % images for frame in self.frames_of(count, transformer_options)[0]]

    def has_hint_of(self, indices: list[int]) -> bool:
        """Is `cond_hint` that of these images? A FrameControl puts the right one there."""
        return self.cond_hint is not None and (self.chosen or self.hint_of == indices)
