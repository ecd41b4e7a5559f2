"""What a clip needs of the device's memory, told to the host and kept to while running."""

import logging
from collections.abc import Callable

import comfy.model_management as management
import torch

from ...unet import UNetConfig, activation_bytes

BUDGETS = (512 * 2**20, 128 * 2**20, 32 * 2**20)  # bytes that a layer may work in, tried in this order
ONE_BY_ONE = 256 * 2**20  # from this need on, the videos of a batch run one after the other
ATTENTION = 1.2  # what attention kernels and the allocator need beside what is counted


def needed(
    config: UNetConfig, frames: int, height: int, width: int, item: int, budget: int = BUDGETS[0], count=activation_bytes
) -> int:
    """Bytes that one call on one video of `frames` frames takes beside the weights.

    `count`: whose activations, `activation_bytes` of a UNet or `encoder_bytes` of a ControlNet.
    """
    return int(ATTENTION * count(config, frames, height, width, item, budget))


def runs_one_by_one(config: UNetConfig, x: torch.Tensor, frames: int, count=activation_bytes) -> bool:
    return needed(config, frames, *x.shape[2:], x.element_size(), count=count) > ONE_BY_ONE


def fitting_budget(config: UNetConfig, x: torch.Tensor, frames: int, count=activation_bytes) -> int:
    """Number of the largest of BUDGETS with which one video fits into the memory that is free now, else of the last."""
    free = management.get_free_memory(x.device)
    for level, budget in enumerate(BUDGETS):
        if needed(config, frames, *x.shape[2:], x.element_size(), budget, count) <= free:
            return level
    return len(BUDGETS) - 1


def within_memory(config: UNetConfig, x: torch.Tensor, frames: int, call: Callable, count=activation_bytes):
    """call(budget) in as large parts as memory allows; where it runs out all the same, again in smaller ones."""
    level = fitting_budget(config, x, frames, count)
    while True:
        try:
            return call(BUDGETS[level])
        except torch.OutOfMemoryError:
            if level == len(BUDGETS) - 1:
                raise
        level += 1
        logging.warning("Temporal UNet: out of memory; going on with layers in parts of %d MiB.", BUDGETS[level] // 2**20)
        management.soft_empty_cache()


def tell_memory(model, config: UNetConfig) -> None:
    """Makes a video MODEL's BaseModel tell what ours needs: that of one video, since a batch runs one by one."""

    def memory_required(input_shape, cond_shapes={}):
        # The host gives the shapes of the batch's conditions where it knows them, and the rows of one video where not.
        frames = input_shape[0] // max(1, len(cond_shapes.get("c_crossattn", ())))
        item = management.dtype_size(model.get_dtype_inference())
        return needed(config, frames, *input_shape[2:], item)

    model.memory_required = memory_required
