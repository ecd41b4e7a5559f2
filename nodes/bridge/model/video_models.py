"""The host's classes of video models around our network, which report the memory that our network needs instead of the host's.

Each has the name of the host's class: the host's log and messages show it.
"""

import comfy.model_base
import comfy.model_management as management
from comfy.patcher_extension import CallbacksMP, WrappersMP

from .feature_run import KEY as FEATURES
from .host_hooks import patched_at_large
from .memory_budget import ChunkedRun

KEY = "temporal_unet.memory"


class VideoMemory(comfy.model_base.BaseModel):
    """What the classes share, as their base before the host's class."""

    def __init__(self, model_config, chunked_run: ChunkedRun):
        super().__init__(model_config)  # of the host's class
        self.chunked_run = chunked_run  # the network's, kept here since a patch may wrap `diffusion_model`
        self.features = 0  # bytes that a Feature Cache keeps in the run that is being loaded for

    def memory_required(self, input_shape, cond_shapes={}):  # noqa: B006  (as the host declares it; only read)
        """Bytes that a call on an input [rows, c, h, w] takes besides the weights; `cond_shapes`: those of its conditions."""
        frames, videos = _frames_and_videos(input_shape[0], cond_shapes)
        need = self.chunked_run.need(videos, frames, *input_shape[2:], management.dtype_size(self.get_dtype_inference()))
        return need + (self.features if KEY in cond_shapes else 0)

    def extra_conds_shapes(self, **condition):
        return _OneCondition({KEY: ()})


class SVD_img2vid(VideoMemory, comfy.model_base.SVD_img2vid):
    pass


class SV3D_u(VideoMemory, comfy.model_base.SV3D_u):
    pass


class SV3D_p(VideoMemory, comfy.model_base.SV3D_p):
    pass


VIDEO_MODELS = {kind.__name__: kind for kind in (SVD_img2vid, SV3D_u, SV3D_p)}


class _OneCondition(dict):
    """The shapes of one condition, each of which `items` yields twice: else two questions of the host look the same.

    While it loads models for a run, the host (`comfy.sampler_helpers.estimate_memory`) collects the items of all conditions and
    asks `memory_required` for twice the clip's rows, with every shape that a name has, then for the clip's rows, with one shape
    for each name. With one condition (cfg 1) plain items give both questions one shape, and nothing else says whether the rows
    are the clip's or twice that. A wrapper around the loading cannot say it: context windows shorten the clip inside of it.
    """

    def items(self):
        return 2 * list(super().items())


def _frames_and_videos(rows, cond_shapes):
    """(frames of a video, most videos in a batch) of what the host asks for; without shapes the rows are those of one video."""
    if asked := len(cond_shapes.get(KEY, ())):  # while loading
        return (rows, 1) if asked == 1 else (rows // 2, asked // 2)
    videos = max(1, len(cond_shapes.get("c_crossattn", ())))  # in a step, or none
    return rows // videos, videos


def follow_runs(patcher) -> None:
    """Lets the BaseModel of a video MODEL know of each sampling run: the patches that cost memory, and that it begins."""
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _note_patches)
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, _begin)


def _note_patches(executor, patcher, noise_shape, conds, *, model_options, **kwargs):
    """Around the host's loading for a sampling run, in which it asks for the memory without saying which patches there are."""
    options, model = model_options["transformer_options"], patcher.model
    model.chunked_run.patched = (
        patched_at_large(options, model.diffusion_model)
        or any("transformer_blocks." in name or "time_stack." in name for name in patcher.object_patches)  # not applied yet
    )
    model.features = options[FEATURES].room if FEATURES in options else 0
    return executor(patcher, noise_shape, conds, model_options=model_options, **kwargs)


def _begin(patcher):
    patcher.model.chunked_run.begin()
