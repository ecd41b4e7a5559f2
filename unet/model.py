"""The UNet of Stable Diffusion 1, 2, XL and Stable Video Diffusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .card_kernels import arranged, convolved, whole
from .config import UNetConfig
from .encoder import Builder, Encoder, Layers, expand
from .hooks import Call, Hooks
from .layers import GROUPS, ResBlock
from .residuals import Residuals


class UNetModel(Encoder):
    """The whole network, built as `config` says, with the key names that files have on disk.

    Sources: Rombach et al. 2022 (arXiv 2112.10752), Podell et al. 2023 (2307.01952), Blattmann et al. 2023
    (2311.15127); the layout is that of Stability's generative-models and of stable-diffusion.cpp's `unet.hpp`.
    """

    def __init__(
        self, config: UNetConfig, *, operations=nn, layers: type[Layers] = Layers, dtype: torch.dtype | None = None, device=None
    ):
        factory = {"dtype": dtype, "device": device}
        build = Builder(config, operations, factory, layers)
        super().__init__(config, build, dtype)
        self.output_blocks = nn.ModuleList(build.output_blocks())
        self.out = nn.Sequential(
            operations.GroupNorm(GROUPS, config.model_channels, eps=1e-5, **factory),
            nn.SiLU(),
            operations.Conv2d(config.model_channels, config.out_channels, 3, padding=1, **factory),
        )

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        c_concat: torch.Tensor | None = None,
        num_frames: int | None = None,
        controls: Sequence[torch.Tensor] | Residuals = (),
        control_strength: float = 1.0,
        *,
        time_context: torch.Tensor | None = None,
        image_only: torch.Tensor | None = None,
        hooks: Hooks | None = None,
        budget: int | None = None,
    ) -> torch.Tensor:
        """The network's prediction [b*t, out_channels, h, w].

        x [b*t, c, h, w] (b videos of `num_frames` frames, all of one video after another; None = one video), of any h
        and w; timesteps [b*t] or [1]; context [b*t, keys, context_dim]; y [b*t, adm_channels], or [b*t] class
        indices; c_concat [b*t, c', h, w] is joined to x's channels. One row of timesteps, context, c_concat or y serves
        the whole batch. `controls`: residuals in the order of the input blocks, then the middle's, each multiplied by
        `control_strength` and not modified; or a `Residuals` object, which is used up and ignores the strength. `budget`:
        working memory in bytes that a layer shall keep to, by running on some of the frames or pixels at a time; the
        result is the same to rounding. Raises ValueError where shapes do not fit the network.
        """
        hooks = hooks or Hooks()
        residuals = self._residuals(controls, control_strength)
        x = self.join(x, c_concat)
        call = Call(
            num_frames=self.frames(x.shape[0], num_frames), emb=self.embed(timesteps, y, x, hooks),
            context=self.attended(context, x.shape[0]), time_context=expand(time_context, x.shape[0], "time_context"),
            image_only=image_only, hooks=hooks, budget=budget,
        )

        path = _Path(x if hooks.sees_images else arranged(x, self.config.model_channels), [], residuals)
        inner, outer = len(self.output_blocks) - hooks.outer, hooks.outer  # blocks, of each direction
        self._down(path, call, range(outer))
        of_inner, of_outer = residuals.split(inner)

        def compute(h):
            path.h, path.residuals = h, of_inner
            del h
            self._down(path, call, range(outer, len(self.input_blocks)))
            self._middle(path, call)
            self._up(path, call, range(inner))
            return path.take()

        path.h = hooks.inner(path.take(), compute)
        path.residuals = of_outer
        self._up(path, call, range(inner, len(self.output_blocks)))
        return whole(convolved(self.out, path.take().to(x.dtype), hooks)).contiguous()

    def _down(self, path: "_Path", call: Call, blocks: range):
        """The input blocks of these indices."""
        h, hooks = path.take(), call.hooks
        for index in blocks:
            hooks.enter_block("input", index)
            for layer in hooks.layers(self.input_blocks[index]):
                h = hooks.layer(layer, h, call)
            h = hooks.input_block(path.residuals.add("input", h))
            path.skips.append(h)
            h = hooks.after_skip(h)
        path.h = h

    def _middle(self, path: "_Path", call: Call):
        h, hooks = path.take(), call.hooks
        hooks.enter_block("middle", 0)
        for layer in () if self.middle_block is None else hooks.layers(self.middle_block):
            h = hooks.layer(layer, h, call)
        path.h = hooks.middle_block(path.residuals.add("middle", h), call.emb)

    def _up(self, path: "_Path", call: Call, blocks: range):
        """The output blocks of these indices."""
        h, hooks, skips = path.take(), call.hooks, path.skips
        for index in blocks:
            hooks.enter_block("output", index)
            layers = list(hooks.layers(self.output_blocks[index]))
            h, skip = hooks.output_block(h, path.residuals.add("output", skips.pop()))
            h = h if skip is None else _join(h, skip, layers[0], call)
            del skip
            call.next_skip = skips[-1].shape if skips else None
            for layer in layers:
                h = hooks.layer(layer, h, call)
        path.h = h

    def _residuals(self, controls, strength):
        if isinstance(controls, Residuals):
            return controls
        return Residuals.from_controls(controls, strength, self.config.num_skips)


@dataclass
class _Path:
    """What is on its way through the blocks."""

    h: torch.Tensor | None  # [b*t, c, h, w]
    skips: list[torch.Tensor]
    residuals: Residuals

    def take(self) -> torch.Tensor:
        """h, to which nothing here refers any more: it is freed as soon as the blocks have made the next one."""
        h, self.h = self.h, None
        assert h is not None
        return h


def _join(h: torch.Tensor, skip: torch.Tensor, layer: nn.Module, call: Call) -> torch.Tensor:
    """What the first layer of an output block is given: h with the skip's channels after its own.

    With a budget a residual block that nothing watches is given h alone, and joins `call.skip` to as many images as it runs at a
    time: the whole takes as much memory as h and skip together.
    """
    if call.budget is None or not isinstance(layer, ResBlock) or call.hooks.watches(layer):
        return torch.cat([h, skip], dim=1)
    call.skip = skip
    return h
