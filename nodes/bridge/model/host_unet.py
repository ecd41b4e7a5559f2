"""Our UNet under ComfyUI's calling convention: what the host puts into a MODEL as its `diffusion_model`."""

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from .... import unet
from .feature_run import KEY, PLACES, FeatureRun
from .host_hooks import HostHooks, patched_at_large
from .host_layers import Attends, HostLayers
from .memory_budget import ChunkedRun, is_out_of_memory, runs_one_by_one
from .replaced_functions import HostResiduals


class UNetModel(unet.UNetModel):
    """`unet.UNetModel`, called as the host calls its own (the class's name is one that packs look for)."""

    # Packs that walk the blocks read these and `num_classes`, as the host's own `_forward` does.
    default_num_video_frames = None
    predict_codebook_ids = False

    def __init__(self, config: unet.UNetConfig, *, attn_precision: torch.dtype | None = None, **kwargs):
        super().__init__(config, layers=HostLayers, **kwargs)
        self.attn_precision = attn_precision
        for layer in self.modules():
            if isinstance(layer, Attends):
                layer.attn_precision = attn_precision
        self.chunked_run = ChunkedRun(config)

    @property
    def in_channels(self):
        return self.config.in_channels

    @property
    def model_channels(self):
        return self.config.model_channels

    @property
    def num_classes(self):
        """The number of classes where y is an index of one, "sequential" where y is a vector, None where there is no y."""
        return self.config.num_classes or ("sequential" if self.config.takes_y else None)

    def forward(
        self, x, timesteps=None, context=None, y=None, control=None,
        transformer_options={},  # noqa: B006  (as the host declares it)
        **kwargs,
    ):
        """Runs inside the DIFFUSION_MODEL wrappers of `transformer_options` (EasyCache and others)."""
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        return WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x, timesteps, context, y, control, transformer_options, **kwargs
        )

    def _forward(
        self, x, timesteps, context, y=None, control=None,
        transformer_options={}, *,  # noqa: B006  (as the host declares it)
        time_context=None, image_only_indicator=None, num_video_frames=None, **_,
    ):
        frames = self._num_frames(x, transformer_options, num_video_frames)
        rows = {
            "x": x, "timesteps": timesteps, "context": context, "y": y, "time_context": time_context,
            "image_only": None if image_only_indicator is None else image_only_indicator.flatten(),
        }
        if (features := _features(transformer_options, x)) is not None:  # each branch of guidance decides for itself
            calls = _one_by_one(len(transformer_options["uuids"]), rows, control, transformer_options)
            return torch.cat([self._cached(features, *call, frames) for call in calls])
        videos = x.shape[0] // frames
        if not self.config.temporal or videos == 1 or not runs_one_by_one(self.config, x, frames):
            return self._in_chunks(rows, control, transformer_options, frames)
        calls = _one_by_one(videos, rows, control, transformer_options)
        return torch.cat([self._in_chunks(*call, frames) for call in calls])

    def _cached(self, features, rows, control, options, frames):
        """One branch, whose inner blocks may be left out."""
        cached = features.call(options, control, rows["x"].device)
        try:
            out = self._in_chunks(rows, control, options, frames, cached)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            cached.done()
            return out
        del cached  # and not in the handler: the error holds on to what the call had made
        features.stop(rows["x"].device)
        return self._in_chunks(rows, control, options, frames)

    def _in_chunks(self, rows, control, options, frames, cached=None):
        if not self.config.temporal:
            return self._call(rows, control, options, frames, None, cached)
        return self.chunked_run.attempt_video(
            rows["x"], lambda budget: self._call(rows, control, options, frames, budget, cached), patched_at_large(options, self)
        )

    def _call(self, rows, control, options, frames, budget, cached):
        asked = {name: rows[name] for name in ("x", "timesteps", "context", "y")}
        image_only = rows["image_only"]
        asked["image_only_indicator"] = None if image_only is None else image_only.reshape(-1, frames)  # the host's shape
        return super().forward(
            **rows, num_frames=frames, budget=budget,
            controls=HostResiduals(*((control or {}).get(place, ()) for place in PLACES)),
            hooks=HostHooks(options, self.config.model_channels, self.attn_precision, asked, cached),
        )

    def _num_frames(self, x, transformer_options, num_video_frames):
        """Frames of each video in the batch: the host's context windows prepend frames that its own count leaves out."""
        if not self.config.temporal:
            return 1
        if "cond_or_uncond" in transformer_options:
            return x.shape[0] // len(transformer_options["cond_or_uncond"])
        return num_video_frames


def _features(options: dict, x: torch.Tensor) -> FeatureRun | None:
    """The kept features of a run that serve a call with these options, if there are any."""
    if torch.compiler.is_compiling():  # a compiled network cannot decide by the values of its activations
        return None
    run = options.get(KEY)
    return run if run is not None and run.acts(options, x.shape[0]) else None


def _one_by_one(videos: int, rows: dict, control: dict | None, options: dict):
    return (_video(index, videos, rows, control, options) for index in range(videos))


def _video(index: int, videos: int, rows: dict, control: dict | None, options: dict):
    """(rows, control, options) of one of the batch's videos, as the host gives them where it runs one at a time."""
    total = rows["x"].shape[0]
    count = total // videos
    mine = slice(index * count, (index + 1) * count)

    def own(value):
        return value[mine] if isinstance(value, torch.Tensor) and value.shape[:1] == (total,) else value

    options = {**options, "sigmas": own(options.get("sigmas"))}
    for name in ("cond_or_uncond", "uuids"):
        if name in options:
            options[name] = options[name][index:index + 1]
    if control is not None:
        control = {place: [own(residual) for residual in control.get(place, ())] for place in PLACES}
    return {name: own(value) for name, value in rows.items()}, control, options
