"""SVD's ControlNet as a CONTROL_NET of the host: loading it, and running it on the frames of a clip."""

import uuid

import comfy.model_base
import comfy.model_management as management
import comfy.utils
import torch

from .... import unet
from ....unet import encoder_bytes, open_controlnet, residual_bytes, residual_shapes
from ..model.host_hooks import HostHooks
from ..model.memory_budget import ChunkedRun, runs_one_by_one
from ..model.replaced_functions import changed_layers
from ..model.trained_length import LONGEST
from .asked import ASKING, Asked, ControlImages, NetResiduals
from .kept_hints import PreparesImages
from .own_controlnet import OwnControlNet
from .pairing import WrongModelError, check_layout, check_video


class SVDControlNet(unet.SVDControlNet):
    """`unet.SVDControlNet` with the host's choice of attention."""

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        self.chunked_run = ChunkedRun(config.encoder, encoder_bytes)

    def forward(self, x, hint, timesteps, context=None, y=None, c_concat=None, num_frames=None, budget=None):
        call = {"x": x, "timesteps": timesteps, "context": context, "y": y}
        hooks = HostHooks({}, self.config.model_channels, None, call)
        return super().forward(x, hint, timesteps, context, y, c_concat, num_frames, hooks=hooks, budget=budget)


def load_svd_controlnet(path: str) -> "SVDControl":
    """The SVD ControlNet in the file `path`, under the host's device management; raises UNetFileError."""
    return SVDControl.load(SVDControlNet, open_controlnet(path))


class SVDControl(PreparesImages, OwnControlNet):
    """One use of an SVD ControlNet.

    It gets the UNet's inputs (scaled latent, first frame, motion) on the conditioned and the unconditioned half alike, as in its
    training and its author's pipeline. The control images are embedded once and kept until they change. Large clips run one
    video (half) after the other, within the memory that is free.
    """

    run = ""  # a name for the images of a run

    def release(self):
        super().release()
        self.run = uuid.uuid4().hex

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        self.control_model.chunked_run.begin()
        check_video(model, "ControlNet")
        config, expected = self._config, model.model_config.unet_config["adm_in_channels"]
        check_layout(model, config)
        if config.adm_channels not in (None, expected):
            raise WrongModelError(
                f"this ControlNet takes a motion vector of width {config.adm_channels}, the model one of {expected}. Load the "
                f"SVD UNet that it was trained with."
            )

    def act(self, x, t, cond, videos, options):
        indices = self.image_indices(x.shape[0] // videos, options)
        rows = self._rows(x, t, cond)
        if self.is_asked(options):
            return Asked([self._asked(x, rows, self.cond_hint_original, indices)], lambda: self._computed(x, rows, indices, videos))
        return self._computed(x, rows, indices, videos)

    def is_asked(self, options: dict) -> bool:
        """Whether its residuals are to be asked for in a call with these transformer_options: not where packs changed its code."""
        return ASKING in options and not changed_layers(self.control_model)

    def asked(self, x, t, cond, images: torch.Tensor, indices: list[int]) -> NetResiduals:
        """What its network is to make of x and the `images` [n, c, h, w] of these indices: one for all frames or one for each."""
        return self._asked(x, self._rows(x, t, cond), images, indices)

    def _asked(self, x, rows, images, indices):
        size, config = x.shape[2:], self._config
        alone = rows["x"].shape[1] == config.in_channels
        joined = self.control_model.join(rows["x"], None if alone else rows["c_concat"])
        return NetResiduals(
            self.control_model_wrapped,
            ControlImages(f"{self.run} {list(size)}", indices, lambda some: self._ready(images[some], size)),
            {"x": joined, **{name: rows[name] for name in ("timesteps", "context", "y")}}, self.strength, [],
        )

    def residual_sizes(self, x) -> list[tuple[int, int]]:
        """Height and width of each of its residuals."""
        return [shape[1:] for shape in residual_shapes(self._config, *x.shape[2:])]

    def _computed(self, x, rows, indices, videos):
        frames, rows = x.shape[0] // videos, {**rows, "hint": self._hint(x, indices, videos)}
        if videos == 1 or not runs_one_by_one(self._config, rows["x"], frames, encoder_bytes):
            residuals = self._call(rows, frames)
        else:
            apart = zip(*(value.split(frames) for value in rows.values()), strict=True)
            made = [self._call(dict(zip(rows, video, strict=True)), frames) for video in apart]
            residuals = [torch.cat(videos) for videos in zip(*made, strict=True)]
        return self.control_merge({"output": residuals[:-1], "middle": residuals[-1:], "input": []}, None, None)

    def _rows(self, x, t, cond):
        """The net's arguments but for the images, each with a row for every frame of every video."""
        def ready(value):
            return comfy.model_base.convert_tensor(value, self.compute_dtype, x.device)

        return {
            "x": self.model_sampling_current.calculate_input(t, x).to(self.compute_dtype),
            "timesteps": self.model_sampling_current.timestep(t).float(),
            "context": ready(cond.get("crossattn_controlnet", cond["c_crossattn"])),
            "y": ready(cond["y"]),
            "c_concat": ready(cond["c_concat"]),
        }

    def _call(self, rows, frames):
        """The residuals, computed in chunks as large as memory allows."""
        return self.control_model.chunked_run.attempt_video(
            rows["x"], lambda budget: self.control_model(**rows, num_frames=frames, budget=budget)
        )

    @property
    def _config(self):
        return self.control_model.config

    def inference_memory_requirements(self, dtype):
        """Bytes that stay while the UNet runs: both halves' residuals and the embedded images.

        Its own activations are freed by then, and are smaller than the UNet's. The host asks before frames and size are known:
        they are taken from the control images, and the frames are at most a window's (also where one image is for all frames).
        A longer clip that is sampled whole needs more than is reported.
        """
        count, _, height, width = self.cond_hint_original.shape
        frames = LONGEST if count == 1 else min(count, LONGEST)
        height, width = height // self.compression_ratio, width // self.compression_ratio
        item = management.dtype_size(self.compute_dtype)
        hints = min(count, frames) * self._config.model_channels * height * width * item
        residuals = 2 * residual_bytes(self._config, frames, height, width, item)
        return super().inference_memory_requirements(dtype) + hints + residuals

    def prepare(self, images, size, device):
        """The embedded control images [n, model_channels, *size]."""
        return self.control_model.embed_hint(self._ready(images, size).to(device))

    def _ready(self, images, size):
        """What the hint net takes: control images [n, c, 8h, 8w] from -1 to 1 for a latent of this size."""
        height, width = (side * self.compression_ratio for side in size)
        images = comfy.utils.common_upscale(images, width, height, self.upscale_algorithm, "center")
        return (images * 2 - 1).to(self.compute_dtype)

    def _hint(self, x, indices, videos):
        """The embedded control images of these indices [b*t, c, h, w]; `cond_hint` keeps them until others are asked for."""
        if not self.has_hint_of(indices) or self.cond_hint.shape[2:] != x.shape[2:]:
            self.cond_hint = self.prepare(self.cond_hint_original[indices], x.shape[2:], x.device)
            self.hint_of = indices
        if self.cond_hint.shape[0] == 1:
            return self.cond_hint.expand(x.shape[0], -1, -1, -1)
        return self.cond_hint.repeat(videos, 1, 1, 1)
