"""Deep-feature cache: the inner blocks of a UNet are left out of steps in which what enters them has hardly changed.

After DeepCache (Ma et al. 2023, arXiv 2312.00858), which computes the inner blocks at every n-th step and repeats their last
result in between. Here a step computes them where its input differs by more than a threshold from that of the step which computed
them last, and the result in between is extrapolated from the last two.
"""

import math
from collections.abc import Callable, Hashable

import torch

STRIDE = 2  # every second pixel in height and width is compared


class InnerFeature:
    """What the inner blocks gave for one branch of guidance (and one window), at the last two steps that computed them."""

    def __init__(self):
        self._forget(None)

    def _forget(self, made_for: Hashable):
        self.made_for = made_for
        self.points: list[tuple[float, torch.Tensor]] = []  # (position, feature [b*t, c, h, w]), the newest last
        self.entered: torch.Tensor | None = None  # what entered the inner blocks at the newest, thinned out

    @property
    def bytes(self) -> int:
        """Memory that is kept."""
        kept = [feature for _, feature in self.points] + ([] if self.entered is None else [self.entered])
        return sum(tensor.nbytes for tensor in kept)

    def at(
        self, position: float, h: torch.Tensor, threshold: float, compute: Callable[[torch.Tensor], torch.Tensor],
        made_for: Hashable = None,
    ) -> torch.Tensor:
        """What leaves the inner blocks at `position`, for h [b*t, c, h, w] that enters them.

        They run, as compute(h), where h has changed by more than `threshold` (relative L2 norm) since they ran last. Else their
        result lies on the line through the last two, in units of `position`. Nothing is carried over from steps with another
        shape, dtype, device or `made_for`. The tensor returned must not be written to.

        After an error in compute, or later in the same step, the step may be repeated with the same `position`.
        """
        made_for = (made_for, h.shape, h.dtype, h.device)
        if made_for != self.made_for:
            self._forget(made_for)
        entered = h[..., ::STRIDE, ::STRIDE]
        if self.entered is not None and relative_change(entered, self.entered) <= threshold:
            return self._extrapolated(position)
        self.points = [point for point in self.points if point[0] != position][-1:]  # at most two features at a time
        self.entered = None
        feature = compute(h)
        self.points.append((position, feature))
        self.entered = entered.clone()
        return feature

    def _extrapolated(self, position):
        newest, feature = self.points[-1]
        if len(self.points) == 1 or position == newest:
            return feature
        before, older = self.points[0]
        return torch.lerp(older, feature, (position - before) / (newest - before))


def relative_change(new: torch.Tensor, old: torch.Tensor) -> float:
    """‖new − old‖ / ‖old‖, computed in fp32; 0 where both are 0."""
    change, norm = (torch.linalg.vector_norm(value.float()).item() for value in (new - old, old))
    return change / norm if norm else math.inf if change else 0.0
