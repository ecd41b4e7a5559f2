"""Running a network on one video within the memory that is free, where no host has a say in it."""

from collections.abc import Callable
from typing import TypeVar

import torch

from .config import UNetConfig

BUDGETS = (None, 512 * 2**20, 128 * 2**20, 32 * 2**20)  # bytes that a layer may work in on a card, tried in this order
ON_CPU = (32 * 2**20,)  # the fastest there
MARGIN = 1.2  # times what is counted: attention kernels and the allocator need more
PLENTY = 2  # without chunks so many times that must be free
Made = TypeVar("Made")


def within_memory(config: UNetConfig, x: torch.Tensor, count: Callable[..., int], call: Callable[[int | None], Made]) -> Made:
    """call(budget) for x [t, c, h, w] with the first budget that fits into free memory, and the next where memory runs out.

    `count`: what the activations take, as `activation_bytes`.
    """
    for budget in _budgets(config, x, count):
        try:
            return call(budget)
        except torch.cuda.OutOfMemoryError as error:
            ran_out = error.with_traceback(None)
        torch.cuda.empty_cache()
    raise ran_out


def _budgets(config, x, count):
    """What layers may work in, from the first that fits."""
    if x.device.type != "cuda":
        return ON_CPU
    free = torch.cuda.mem_get_info(x.device)[0] + torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
    t, _, h, w = x.shape
    needs = [MARGIN * count(config, t, h, w, x.element_size(), budget) for budget in BUDGETS]
    needs[0] *= PLENTY
    first = next((index for index, need in enumerate(needs) if need <= free), len(BUDGETS) - 1)
    return BUDGETS[first:]
