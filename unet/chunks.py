"""Running a layer on a part of the batch at a time, so that its working memory stays under a budget."""

from collections.abc import Callable, Iterator

import torch


def spans(count: int, bytes_each: int, budget: int | None) -> Iterator[slice]:
    """Slices that cover `count` items in parts of equal size (but the last) that need at most `budget` bytes each.

    At least one item a part; one part where the budget is None.
    """
    size = count if budget is None else max(1, min(count, budget // bytes_each))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def by_rows(
    function: Callable[..., torch.Tensor], budget: int | None, bytes_each: int, x: torch.Tensor, *more: torch.Tensor
) -> torch.Tensor:
    """function(x, *more), in parts of their rows: the same to rounding where each row's result depends on that row alone.

    `bytes_each` is the working memory that one row needs beside its input.
    """
    parts = list(spans(x.shape[0], bytes_each, budget))
    if len(parts) == 1:
        return function(x, *more)
    out = None
    for part in parts:
        done = function(x[part], *(value[part] for value in more))
        if out is None:
            out = done.new_empty(x.shape[0], *done.shape[1:])
        out[part] = done
        del done
    return out
