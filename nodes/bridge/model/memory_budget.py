"""What a clip needs of the device's memory, told to the host and kept to while running."""

import logging
import weakref
from collections.abc import Callable, Hashable

import comfy.model_management as management
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ....unet import UNetConfig, activation_bytes
from .host_hooks import patched_at_large

BUDGETS = (512 * 2**20, 128 * 2**20, 32 * 2**20)  # bytes that a layer may work in, tried in this order
ONE_BY_ONE = 256 * 2**20  # from this need on, the videos of a batch run one after the other
ATTENTION = 1.2  # what attention kernels and the allocator need beside what is counted
PATCHED, PATCHED_MORE = 12, 2  # copies of the largest activations where attention runs whole: at least, and beside the rest
SAVING = 0.95  # smaller parts that need more than this share of what larger ones do are no help
KEY = "temporal_unet.memory"
HOST_KNOWS_BOTH = hasattr(management, "is_oom")  # 0.16.3 has no such function


def needed(
    config: UNetConfig, frames: int, height: int, width: int, item: int, budget: int = BUDGETS[0], count=activation_bytes,
    patched: bool = False,
) -> int:
    """Bytes that one call on one video of `frames` frames takes beside the weights.

    `count`: whose activations, `activation_bytes` of a UNet or `encoder_bytes` of a ControlNet. `patched`: attention runs on
    the whole video, as in `hooks.patched_at_large`.
    """
    need = count(config, frames, height, width, item, budget)
    if patched:
        largest = config.model_channels * frames * height * width * item
        need = max(need + PATCHED_MORE * largest, PATCHED * largest)
    return int(ATTENTION * need)


def runs_one_by_one(config: UNetConfig, x: torch.Tensor, frames: int, count=activation_bytes) -> bool:
    return needed(config, frames, *x.shape[2:], x.element_size(), count=count) > ONE_BY_ONE


def is_out_of_memory(error: Exception) -> bool:
    """Does the error say that a device's memory ran out? PyTorch has two of that kind, of which older hosts know one."""
    return management.is_oom(error) if HOST_KNOWS_BOTH else isinstance(error, management.OOM_EXCEPTION)


class Retry:
    """Runs a call in chunks as large as free memory allows, and in smaller ones where memory ran out all the same.

    A size that ran out is not tried again for the same key until `begin` starts another sampling run.
    """

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        self.reached: dict[Hashable, int] = {}  # for keys that ran out: which of BUDGETS is left

    def attempt(self, key: Hashable, needs: list[int], device: torch.device, call: Callable):
        """call(budget) with one of BUDGETS, of which each needs as many bytes as `needs` says; the warning is given once a run.

        Raises the error where no smaller chunks would need less.
        """
        level = max(fitting_budget(needs, device), self.reached.get(key, 0))
        while True:
            try:
                return call(BUDGETS[level])
            except Exception as error:
                smaller = _smaller(needs, level)
                if smaller is None or not is_out_of_memory(error):
                    raise
            # Not before here, where the error no longer holds on to what the call had made.
            level = smaller
            if level > max(self.reached.values(), default=0):
                logging.warning("Temporal UNet: out of memory; going on with layers in parts of %d MiB.", BUDGETS[level] // 2**20)
            self.reached[key] = level
            management.soft_empty_cache()

    def attempt_rows(self, key: Hashable, rows: int, bytes_each: int, device: torch.device, call: Callable):
        """`attempt` for a call that works on `rows` rows of `bytes_each`, as many at a time as the budget allows."""
        needs = [min(rows * bytes_each, max(budget, bytes_each)) for budget in BUDGETS]
        return self.attempt(key, needs, device, call)


class Parts(Retry):
    """How a network runs its layers on the frames and pixels of a video."""

    def __init__(self, config: UNetConfig, count: Callable = activation_bytes):
        super().__init__()
        self.config = config
        self.count = count
        self.patched = False  # as in `needed`, of the MODEL that is being sampled

    def run(self, x: torch.Tensor, call: Callable, patched: bool = False):
        """`attempt` for an input of x's shape [b*t, c, h, w]; `patched` as in `needed`."""
        needs = [
            needed(self.config, x.shape[0], *x.shape[2:], x.element_size(), budget, self.count, patched) for budget in BUDGETS
        ]
        return self.attempt(x.shape, needs, x.device, call)


def fitting_budget(needs: list[int], device: torch.device) -> int:
    """Number of the first of `needs` (by budget, the largest first) that is free on the device, else of the least."""
    free = management.get_free_memory(device)
    return next((level for level, need in enumerate(needs) if need <= free), needs.index(min(needs)))


def _smaller(needs, level):
    """Number of the next budget that needs less than this one, None where there is none."""
    return next((number for number in range(level + 1, len(needs)) if needs[number] < SAVING * needs[level]), None)


class _OneCondition(dict):
    """What is told of one condition while models are loaded: a name, given twice.

    The host then asks for the memory of twice the clip's rows with the shapes of all conditions, and for that of the clip's
    rows with one shape of each name. More than one shape marks the first question, also where there is one condition.
    """

    def items(self):
        return 2 * list(super().items())


def tell_memory(patcher, config: UNetConfig) -> None:
    """Makes a video MODEL tell the host what ours needs: that of one video, or of all where they run together."""
    model = patcher.model
    parts = model.temporal_unet_parts = model.diffusion_model.parts  # the network itself may be wrapped by a patch
    owner = weakref.ref(model)  # what a model holds must not hold the model, or it outlives its last use

    def memory_required(input_shape, cond_shapes={}):
        frames, videos = _frames_and_videos(input_shape[0], cond_shapes)
        item = management.dtype_size(owner().get_dtype_inference())
        one = needed(config, frames, *input_shape[2:], item, patched=parts.patched)
        return one if one > ONE_BY_ONE else videos * one

    model.memory_required = memory_required
    model.extra_conds_shapes = lambda **condition: _OneCondition({KEY: ()})
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _note_patches)
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, _begin)


def _frames_and_videos(rows, cond_shapes):
    """(frames of a video, most videos in a batch) of what the host asks for; rows alone are those of one video."""
    if asked := len(cond_shapes.get(KEY, ())):
        return (rows, 1) if asked == 1 else (rows // 2, asked // 2)
    videos = max(1, len(cond_shapes.get("c_crossattn", ())))
    return rows // videos, videos


def _note_patches(executor, patcher, noise_shape, conds, *, model_options, **kwargs):
    """Around the host's loading for a sampling run, in which it asks for the memory and does not name the patches."""
    patcher.model.temporal_unet_parts.patched = patched_at_large(model_options["transformer_options"])
    return executor(patcher, noise_shape, conds, model_options=model_options, **kwargs)


def _begin(patcher):
    patcher.model.temporal_unet_parts.begin()
