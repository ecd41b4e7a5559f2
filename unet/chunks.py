"""Running a layer on a chunk of the batch at a time, so that its working memory stays under a budget."""

from collections.abc import Callable, Iterator

import torch


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """Which dimension lies densest in the memory of x: of images [n, c, h, w] it may be the channels."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def spans(count: int, bytes_each: int, budget: int | None) -> Iterator[slice]:
    """Slices that cover `count` items in chunks of equal size (except the last) that need at most `budget` bytes each.

    A chunk has one item at least; without a budget, one chunk holds all items. While compiling for any size this asks only
    whether all items fit, and fixes the size where they do not.
    """
    whole = budget is None or count * bytes_each <= budget
    size = count if whole else max(1, int(budget // bytes_each))  # type: ignore[operator]  # with a budget where not whole
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def by_rows(
    function: Callable[..., torch.Tensor], budget: int | None, bytes_each: int, x: torch.Tensor, *more: torch.Tensor
) -> torch.Tensor:
    """function(x, *more), in chunks of their rows: equal up to rounding if each row's result depends on that row alone.

    `bytes_each` is the working memory that one row needs in addition to its input.
    """
    if budget is None:
        return function(x, *more)
    first, *others = spans(x.shape[0], bytes_each, budget)
    if not others:
        return function(x, *more)
    done = function(x[first], *(value[first] for value in more))
    shape = x.shape[0], *done.shape[1:]
    out = torch.empty(shape, dtype=done.dtype, device=done.device, memory_format=memory_format(done))
    out[first] = done
    del done  # before the next chunk needs the memory
    for chunk in others:
        out[chunk] = function(x[chunk], *(value[chunk] for value in more))
    return out
