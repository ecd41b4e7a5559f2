"""The windows of one step: where they begin, and what they make of a clip's frames, whichever of them is done first."""

from collections.abc import Sequence

import torch

GOLDEN = 0.6180339887498949  # multiples of it modulo 1 spread evenly, however many there are


def window_starts(total: int, length: int, overlap: int, step: int, closed_loop: bool) -> list[int]:
    """First frames of the windows of one step, in the order of time; the first is 0, where the given image belongs.

    The others move from step to step, so that no joint stays in one place; in a loop the last run over the end of the clip.
    A clip of one window has no others.
    """
    if total == length:
        return [0]
    stride = length - overlap
    offset = 1 + int(stride * (step * GOLDEN % 1)) if stride > 1 else 1
    if closed_loop:
        return [0, *range(offset, total, stride)]
    last = total - length
    return [0, *range(min(offset, last), last, stride), last]


def pyramid(length: int) -> torch.Tensor:
    """Weights [length] of a window's frames: highest in the middle, never 0."""
    position = torch.arange(length, dtype=torch.float32)
    return torch.minimum(position, length - 1 - position) + 1


class WindowStep:
    """The windows of one step of a clip of `total` frames, and the predictions that are in.

    `starts`: their first frames, in the order of time; `branches`: the indices of the predictions that each window has. A frame
    is the mean over the windows that hold it, weighted by `pyramid` and summed in the order of time: which window was done
    first changes nothing. What comes in that order is summed at once, so that little is kept.
    """

    def __init__(self, starts: list[int], length: int, total: int, branches: list[int]):
        self.frames = [[(start + i) % total for i in range(length)] for start in starts]
        self.branches = branches
        self.weights = pyramid(length) if len(starts) > 1 else torch.ones(length)  # of one alone, which stays as it is
        self._sums: dict[int, torch.Tensor] = {}  # by branch [total, c, h, w]: of its first windows,
        self._summed = dict.fromkeys(branches, 0)  # so many;
        self._waiting: dict[int, dict[int, torch.Tensor]] = {branch: {} for branch in branches}  # later ones, by window
        self._images: dict[int, torch.Tensor] = {}
        self._holding: list[dict[int, int]] = [{} for _ in range(total)]  # of a frame: the windows over it and its place there
        for window, frames in enumerate(self.frames):
            for place, frame in enumerate(frames):
                self._holding[frame][window] = place

    def put(self, window: int, branch: int, made: torch.Tensor) -> None:
        """The prediction [length, c, h, w] of a window for a branch."""
        waiting = self._waiting[branch]
        waiting[window] = made
        if branch not in self._sums:
            self._sums[branch] = made.new_zeros(len(self._holding), *made.shape[1:])
        while (window := self._summed[branch]) in waiting:
            if branch == self.branches[0] and self._before(self.frames[window][0], window):
                self.image(window)  # which another branch may ask for later
            made = waiting.pop(window)
            self._sums[branch][self.frames[window]] += self.weights.to(made.device).reshape(-1, 1, 1, 1) * made
            self._summed[branch] += 1

    def has(self, frame: int, branch: int) -> bool:
        """Is what every window makes of this frame in?"""
        return self._has(frame, branch, None)

    def mean(self, frames: Sequence[int], branch: int) -> torch.Tensor:
        """What the windows make of these frames of a branch [n, c, h, w], of which all must be in."""
        return self._mean(frames, branch, None)

    def has_image(self, window: int) -> bool:
        """Is what the windows before this one make of its first frame in?"""
        return window in self._images or self._has(self.frames[window][0], self.branches[0], window)

    def image(self, window: int) -> torch.Tensor:
        """What the windows before this one make of its first frame in the first branch [c, h, w]."""
        if window not in self._images:
            [self._images[window]] = self._mean(self.frames[window][:1], self.branches[0], window)
        return self._images[window]

    def _has(self, frame, branch, before):
        summed, waiting = self._summed[branch], self._waiting[branch]
        return all(window < summed or window in waiting for window in self._before(frame, before))

    def _mean(self, frames, branch, before):
        sums = self._sums[branch][list(frames)]
        for window, made in sorted(self._waiting[branch].items()):
            for row, frame in enumerate(frames):
                if window in self._before(frame, before):
                    place = self._holding[frame][window]
                    sums[row] += self.weights[place].item() * made[place]
        weight = [sum(self.weights[place].item() for place in self._before(frame, before).values()) for frame in frames]
        return sums / sums.new_tensor(weight).reshape(-1, 1, 1, 1)

    def _before(self, frame, before):
        holding = self._holding[frame]
        return holding if before is None else {window: place for window, place in holding.items() if window < before}
