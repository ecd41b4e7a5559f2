"""Control residuals: what a ControlNet adds to the UNet's skips and middle block."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import torch

from .config import Levels, level_size

PLACES = ("input", "middle", "output")
Placed = dict[str, list[torch.Tensor | None]]  # residuals by place, as `Residuals` takes them


class Residuals:
    """Residual tensors waiting to be added, one list for each place; each list is consumed from its end.

    `output` holds those of the skips in the order of the input blocks (so the last is used first), `middle` that of the
    middle block, `input` those that go to both h and the skip (T2I-Adapter), reversed. This is the order in which
    hosts hand them over. The tensors are only read, so the same ones may serve two calls; the object is used up by
    one.
    """

    def __init__(self, input: Sequence = (), middle: Sequence = (), output: Sequence = ()):
        self.waiting = {"input": list(input), "middle": list(middle), "output": list(output)}

    @classmethod
    def from_controls(cls, controls: Sequence[torch.Tensor], strength: float, num_skips: int) -> "Residuals":
        """From a list of `num_skips` tensors in the order of the input blocks, and then that of the middle block.

        A strength of 0 adds nothing, so that the result is bit-equal to an uncontrolled call. Raises ValueError where
        the count does not fit the network.
        """
        if not len(controls) or strength == 0:
            return cls()
        if len(controls) != num_skips + 1:
            raise ValueError(
                f"controls: found {len(controls)} residuals, expected {num_skips + 1} ({num_skips} for the input blocks "
                f"and 1 for the middle block); these residuals were made for another network."
            )
        scaled = [residual * strength for residual in controls]
        return cls(output=scaled[:-1], middle=scaled[-1:])

    def split(self, inner: int) -> tuple["Residuals", "Residuals"]:
        """Those that wait for the middle, for further input blocks and for the next `inner` output blocks; those of the rest."""
        output = self.waiting["output"]
        first, made = max(0, len(output) - inner), type(self)
        return made(self.waiting["input"], self.waiting["middle"], output[first:]), made(output=output[:first])

    def add(self, place: str, h: torch.Tensor) -> torch.Tensor:
        """h [b*t, c, h, w] plus the next residual of `place`, which is repeated over the batch where it has fewer rows.

        Rows are b-major (all frames of the first video, then of the next), so one video's residuals repeat whole.
        Raises ValueError where channels, size or rows do not fit.
        """
        if not self.waiting[place]:
            return h
        residual = self.waiting[place].pop()
        if residual is None:
            return h
        if residual.shape[1:] != h.shape[1:]:
            raise ValueError(
                f"A control residual of shape {list(residual.shape)} cannot be added to the {place} activations of shape "
                f"{list(h.shape)}: the ControlNet was made for another kind of model. Use one of this model's family."
            )
        if h.shape[0] % residual.shape[0]:
            raise ValueError(
                f"A control residual of shape {list(residual.shape)} cannot be added to the {place} activations of shape "
                f"{list(h.shape)}: its {residual.shape[0]} rows do not follow the frames. Give one control image, or one "
                f"per frame, through a node that follows context windows."
            )
        residual = residual.to(dtype=h.dtype, device=h.device)
        return h + residual.repeat(h.shape[0] // residual.shape[0], 1, 1, 1)


def residual_shapes(levels: Levels, height: int, width: int) -> list[tuple[int, int, int]]:
    """Shapes [c, h, w] of a network's `controls` at a latent of height x width: of each skip, then of the middle."""
    shapes = [(block.channels, *level_size(block.level, height, width)) for block in levels.input_layout()]
    return [*shapes, shapes[-1]]


def added(first: Mapping[str, Sequence], second: Mapping[str, Sequence]) -> Placed:
    """The sum of two controls, residual by residual; a missing one counts as zero."""
    out: Placed = {}
    for place in PLACES:
        pairs = zip_longest(first.get(place, ()), second.get(place, ()))
        out[place] = [y if x is None else x if y is None else x + y for x, y in pairs]
    return out
