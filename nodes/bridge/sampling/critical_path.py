"""Which call of a long clip's windows the others wait for longest."""

from collections.abc import Iterable

from .window_step import WindowStep


def remaining_calls(steps: Iterable[tuple[WindowStep, bool]]) -> list[dict[tuple[int, int], int]]:
    """For each step, by (window, branch): how many calls must run one after another from that one to the end of the run.

    A window of the next step waits for all that hold a frame of it. `steps`: the last one first, each with whether a window waits
    for the images of those before it in its own step, which the first branch makes.
    """
    out: list[dict[tuple[int, int], int]] = []
    following: list[tuple[set[int], int]] = []  # of the windows of the next step: their frames, and the longest of their branches
    for step, chained in steps:
        own: dict[tuple[int, int], int] = {}
        windows = [set(frames) for frames in step.frames]
        for window in reversed(range(len(windows))):
            after = max((longest for frames, longest in following if not frames.isdisjoint(windows[window])), default=0)
            handed = [own[later, step.branches[0]] for later in range(window + 1, len(windows))
                      if chained and step.frames[later][0] in windows[window]]
            for branch in step.branches:
                own[window, branch] = 1 + max([after, *handed] if branch == step.branches[0] else [after])
        following = [(frames, max(own[window, branch] for branch in step.branches)) for window, frames in enumerate(windows)]
        out.append(own)
    return out[::-1]
