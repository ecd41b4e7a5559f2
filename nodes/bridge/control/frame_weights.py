"""How strongly a control acts on each frame and region of a clip."""

import logging
from collections.abc import Iterable

import comfy.utils
import torch

from ..inputs.curve import evaluate_curve

Curve = list[tuple[float, float]]  # (position in the clip from 0 to 1, weight), as `parse_curve` reads it


def indices_for(count: int, frames: list[int]) -> list[int]:
    """Which of `count` images (masks, residuals) belong to these frames of a clip, as indices.

    One is for all frames; of several each frame has its own. Where they end early the last one stays, and those beyond the
    clip are not used.
    """
    return [min(frame, count - 1) for frame in frames]


def log_surplus(node: str, what: str, count: int, total: int) -> None:
    """A line in the log, for once a run, where there are more of `what` (control images, masks, …) than the clip has frames."""
    if count > total:
        logging.warning("%s: found %d %s for %d frames; the first %d are used.", node, count, what, total, total)


class FrameWeights:
    """The weights of a clip of `total` frames: of its frames by `curve`, of its pixels by `mask` [1 to frames, h, w] from 0 to 1.

    Without a curve (None) each frame has weight 1.
    """

    def __init__(self, curve: Curve | None, mask: torch.Tensor | None, total: int):
        self.total = total
        weights = torch.ones(total) if curve is None else torch.from_numpy(evaluate_curve(curve, total)).float()
        self.curve = weights.reshape(-1, 1, 1, 1)
        self.mask = None if mask is None else mask[:, None]
        self.resized: dict[tuple, torch.Tensor] = {}  # the mask at each size that residuals have, made once

    def of(self, frames: list[int]) -> torch.Tensor:
        """[t, 1, h, w] with h, w of the mask (or 1), fp32 on the CPU."""
        weights = self.curve[frames]
        if self.mask is None:
            return weights
        return weights * self.mask[self._indices(frames)]

    def apply(self, residual: torch.Tensor | None, frames: list[int], videos: int) -> torch.Tensor | None:
        """residual [videos * t, c, h, w] times the weights of its t frames; a new tensor."""
        if residual is None:
            return None
        return residual * self._at(frames, residual.shape[2:], residual).repeat(videos, 1, 1, 1)

    def at_sizes(self, frames: list[int], sizes: Iterable[tuple[int, int]], like: torch.Tensor) -> list[torch.Tensor]:
        """What residuals of each size are multiplied by [t, 1, h, w], or one for all [t, 1, 1, 1], in the dtype of `like`."""
        return [self._at(frames, size, like) for size in ([(1, 1)] if self.mask is None else dict.fromkeys(sizes))]

    def _at(self, frames, size, like):
        weights = self.curve[frames].to(like)
        if self.mask is not None:
            weights = weights * self._mask(size, like)[self._indices(frames)]
        return weights

    def _indices(self, frames):
        return indices_for(self.mask.shape[0], frames)

    def _mask(self, size, like):
        height, width = size
        key = (height, width), like.device, like.dtype
        if key not in self.resized:
            self.resized[key] = comfy.utils.common_upscale(self.mask.to(like), width, height, "bilinear", "disabled")
        return self.resized[key]
