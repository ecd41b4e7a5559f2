"""What a clip needs of the device's memory, and calls that keep to it."""

import logging
from collections.abc import Callable, Hashable
from typing import TypeVar

import comfy.model_management as management
import torch

from ....unet import UNetConfig, activation_bytes

BUDGETS = (512 * 2**20, 128 * 2**20, 32 * 2**20)  # bytes that a layer may work in, tried in this order
REPORTED = 128 * 2**20  # the one that the host is told of: what it keeps free besides is more than larger ones need on top
CPU_BUDGET = 32 * 2**20  # the most on a CPU: the allocator maps larger blocks again each time, and their pages fault
ROOM = 2  # without chunks so many times what is estimated must be free: they save memory that others may soon need
ONE_BY_ONE = 256 * 2**20  # bytes: above this need the videos of a batch run one after the other
ATTENTION = 1.2  # times what is counted: attention kernels and the allocator need more
PATCHED, PATCHED_MORE = 12, 2  # copies of the largest activations where attention runs whole: at least, and on top of the rest
SAVING = 0.95  # smaller chunks that need more than this share of what larger ones do are no help
Choice = TypeVar("Choice")
Result = TypeVar("Result")
HOST_KNOWS_BOTH = hasattr(management, "is_oom")  # 0.16.3 has no such function


def needed(
    config: UNetConfig, frames: int, height: int, width: int, item: int, budget: int | None = REPORTED,
    count=activation_bytes, patched: bool = False,
) -> int:
    """Bytes that one call on one video of `frames` frames, a latent of height x width, takes besides the weights.

    `item`: bytes of a number. `count`: whose activations, `activation_bytes` of a UNet or `encoder_bytes` of a ControlNet.
    `patched`: attention runs on the whole video, see `host_hooks.patched_at_large`.
    """
    need = count(config, frames, height, width, item, budget)
    if patched:
        largest = config.model_channels * frames * height * width * item
        need = max(need + PATCHED_MORE * largest, PATCHED * largest)
    return int(ATTENTION * need)


def budgets(device: torch.device) -> tuple[int | None, ...]:
    """What a layer on this device may work in, tried in this order; None: all that it takes, on large cards.

    Chunks of 512 MiB cost a card copies and launches: 5 and 56 % more than none, counted for 14 frames of 1024x576.
    """
    if device.type == "cpu":
        return tuple(budget for budget in BUDGETS if budget <= CPU_BUDGET)
    return (None, *BUDGETS) if device.type == "cuda" else BUDGETS


def runs_one_by_one(config: UNetConfig, x: torch.Tensor, frames: int, count=activation_bytes) -> bool:
    """Whether the videos of `frames` frames in x [b*t, c, h, w] run one after the other."""
    height, width = x.shape[2:]
    return needed(config, frames, height, width, x.element_size(), count=count) > ONE_BY_ONE


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that a device's memory ran out. PyTorch has two of that kind, of which older hosts know one."""
    return management.is_oom(error) if HOST_KNOWS_BOTH else isinstance(error, management.OOM_EXCEPTION)


def until_it_fits(call: Callable[[Choice], Result], choice: Choice, cheaper: Callable[[Choice], Choice | None]) -> Result:
    """call(choice); where memory runs out, again with cheaper(choice) and so on, until that is None: the error is raised then."""
    while True:
        try:
            return call(choice)
        except Exception as error:
            following = cheaper(choice) if is_out_of_memory(error) else None
            if following is None:
                raise
        choice = following
        management.soft_empty_cache()  # not before here: the error holds on to what the call had made


class Retry:
    """Runs a call in chunks as large as free memory allows, and in smaller ones where memory runs out all the same.

    A size that ran out of memory is not tried again for the same key until `begin` starts another sampling run.
    """

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        self.reached: dict[Hashable, int] = {}  # for keys that ran out of memory: index in `budgets` of what is left

    def attempt(self, key: Hashable, need: Callable[[int | None], int], device: torch.device, call: Callable):
        """call(budget) with one of the device's budgets, of which each needs `need(budget)` bytes; each size warns once a run.

        Raises the error where no smaller chunks would need less. While compiling, the first of BUDGETS is the only one: a compiled
        call is traced with one, can ask for no memory and be tried no second time.
        """
        if torch.compiler.is_compiling():
            return call(BUDGETS[0])
        choices = budgets(device)
        needs = [need(budget) for budget in choices]

        def smaller(level):
            level = _smaller(needs, level)
            if level is not None:
                self._note(key, level, choices[level])
            return level

        level = max(fitting_budget(needs, device), self.reached.get(key, 0))
        return until_it_fits(lambda level: call(choices[level]), level, smaller)

    def _note(self, key, level, budget):
        if level > max(self.reached.values(), default=0):
            logging.warning("Temporal UNet: out of memory; going on with layers in chunks of %d MiB.", budget // 2**20)
        self.reached[key] = level

    def attempt_rows(self, key: Hashable, rows: int, bytes_each: int, device: torch.device, call: Callable):
        """`attempt` for a call that works on `rows` rows of `bytes_each`, as many at a time as the budget allows."""
        def need(budget):
            return rows * bytes_each if budget is None else min(rows * bytes_each, max(budget, bytes_each))

        return self.attempt(key, need, device, call)


class ChunkedRun(Retry):
    """How a network runs its layers on the frames and pixels of a video, in the course of a sampling run."""

    def __init__(self, config: UNetConfig, count: Callable = activation_bytes):
        super().__init__()
        self.config = config
        self.count = count
        self.patched = False  # as in `needed`, of the MODEL that is being sampled

    def need(self, videos: int, frames: int, height: int, width: int, item: int) -> int:
        """Bytes as in `needed` of a call on `videos` videos: those of one, or of all where they run together."""
        one = needed(self.config, frames, height, width, item, count=self.count, patched=self.patched)
        return one if one > ONE_BY_ONE else videos * one

    def attempt_video(self, x: torch.Tensor, call: Callable, patched: bool = False):
        """`attempt` for an input of x's shape [b*t, c, h, w]; `patched` as in `needed`."""
        frames, _, height, width = x.shape
        item = x.element_size()
        return self.attempt(
            x.shape, lambda budget: needed(self.config, frames, height, width, item, budget, self.count, patched), x.device, call
        )


def fitting_budget(needs: list[int], device: torch.device) -> int:
    """Index of the first of `needs` (one for each of the device's budgets) that is free on it, else of the least."""
    free = management.get_free_memory(device)
    rooms = [ROOM if budget is None else 1 for budget in budgets(device)]
    fitting = (level for level, (need, room) in enumerate(zip(needs, rooms, strict=True)) if room * need <= free)
    return next(fitting, needs.index(min(needs)))


def _smaller(needs, level):
    """Index of the next budget that needs less than this one, None where there is none."""
    return next((index for index in range(level + 1, len(needs)) if needs[index] < SAVING * needs[level]), None)
