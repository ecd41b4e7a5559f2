"""Calls of the network that may run at the same time: on each device that the host has a clone of the MODEL on, or elsewhere."""

import functools
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import comfy.model_management as management
import comfy.patcher_extension
import torch

from ..model.feature_run import KEY as FEATURE_CACHE_KEY
from ..node_names import FEATURE_CACHE, SVD_SAMPLER

CLONES = "multigpu"  # key of a MODEL's clones on other devices, among the host's additional models
ON_DEVICES, POOL = "multigpu_clones", "multigpu_thread_pool"  # in model_options during a run: the MODEL by device, and threads
MOST = 1000  # threads that wait for calls elsewhere
POLL = 0.1  # seconds after which a cancel is seen while every lane works
ELSEWHERE = "temporal_unet.elsewhere"  # in transformer_options: an Elsewhere, whose key its wrappers have too
LANE = "temporal_unet.lane"  # in transformer_options of a call to such: its thread has the Elsewhere's `turn`
COMPILED = "torch.compile"  # key of the wrapper that has the host's BaseModel call a compiled network
STATELESS = (COMPILED, ELSEWHERE)  # keys of wrappers that keep nothing from call to call
KINDS = comfy.patcher_extension.WrappersMP


@dataclass(frozen=True)
class NetworkCall:
    """A call of the network: `run(model_options)` on a lane, in a thread of its own, then `done(result)` in the caller's."""

    run: Callable[[dict], Any]
    done: Callable[[Any], None]


class Work(Protocol):
    """A source of calls."""

    def next_call(self) -> NetworkCall | None:
        """The next call that may run now; None where there is none until another is done, or at all."""


class Elsewhere(Protocol):
    """Other processes that take calls of the network, sent by a wrapper of the MODEL from wherever the host makes one."""

    turn: threading.Lock  # held while a thread works in this process: what a MODEL and its controls keep is of one call at a time

    @property
    def lanes(self) -> int:
        """Calls that may be out at the same time, one at least; it may change in the course of a run."""

    def drop(self) -> None:
        """Whoever waits for a call ends with an error."""


def is_elsewhere(model_options: dict) -> bool:
    """Does a MODEL with these options have its network called in other processes?"""
    return ELSEWHERE in model_options.get("transformer_options", {})


def may_use_lanes(patcher) -> bool:
    """Is there more than one place where calls of this MODEL's network may run?"""
    return bool(patcher.get_additional_models_with_key(CLONES)) or is_elsewhere(patcher.model_options)


def lanes_of(model_options: dict, conds: Iterable) -> list[dict]:
    """The `model_options` for a call on each device that may work, one call at a time; of one device they are the same.

    The host itself never gives a window to more than two devices. With a single clone in its options it runs a call on the
    device of that clone, with the clone of the ControlNet for that device, in the thread that asks.
    """
    clones = model_options.get(ON_DEVICES, {})
    shared = {key: value for key, value in model_options.items() if key not in (ON_DEVICES, POOL)}
    if is_elsewhere(model_options) and not keeps_state(model_options, conds):
        options = model_options["transformer_options"]
        return [{**shared, "transformer_options": {**options, LANE: True}}] * options[ELSEWHERE].lanes
    if len(clones) < 2 or keeps_state(model_options, conds):
        return [model_options]
    return [{**shared, ON_DEVICES: {device: clone}} for device, clone in clones.items()]


def warn_where_windows_wait(model_options: dict, conds: Iterable) -> None:
    """Logs what keeps a run in windows from using all devices that the host has a clone of the MODEL on."""
    devices, kept = len(model_options.get(ON_DEVICES, {})), keeps_state(model_options, conds)
    if devices > 1 and kept and "context_handler" in model_options:
        logging.warning(
            "%s: windows are worked on one after another, since %s keeps state from call to call. Take it out to use all %d "
            "devices.", SVD_SAMPLER, kept, devices)


def keeps_state(model_options: dict, conds: Iterable) -> str | None:
    """What on the model or on the host's conds may keep state from one call to the next, for the user; None: nothing does."""
    if any("hooks" in condition for conditions in conds for condition in conditions or ()):
        return "a hook on the conditioning"
    if FEATURE_CACHE_KEY in model_options.get("transformer_options", {}):
        return FEATURE_CACHE
    for name in ("model_function_wrapper", "sampler_calc_cond_batch_function"):
        if name in model_options:
            return name
    for kind in (KINDS.CALC_COND_BATCH, KINDS.APPLY_MODEL, KINDS.DIFFUSION_MODEL):
        wrappers = model_options.get("transformer_options", {}).get("wrappers", {}).get(kind, {})
        for key, functions in wrappers.items():
            if functions and key not in STATELESS:
                return f"the wrapper {key}"
    return None


def run_calls(
    lanes: list[dict], work: Work, report: Callable[[int, int], None] = lambda busy, lanes: None, stop: Callable = lambda: None
) -> None:
    """Runs all calls of `work`, on one lane in this thread, on several at the same time.

    `report(busy, lanes)` is called in this thread with how many of the lanes work, each time that one has begun.
    An error of a call, and a cancel, end it as soon as the calls that are out have ended, which `stop` may hasten.
    """
    outside = _outside(lanes[0])
    out: dict[Future, tuple[NetworkCall, dict]] = {}  # calls that run, each with its lane
    if len(lanes) == 1 and outside is None:
        while (call := work.next_call()) is not None:
            management.throw_exception_if_processing_interrupted()
            report(1, 1)
            call.done(call.run(lanes[0]))
        return
    with _threads(len(lanes), "lane") if outside is None else nullcontext(_waiting_threads()) as threads:
        try:
            _run_on(threads, lanes, work, report, out)
        except BaseException:
            stop()
            if outside is not None:
                outside.drop()
            wait(out)
            raise


def _threads(count: int, role: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix=f"temporal-unet-{role}")


@functools.cache
def _waiting_threads() -> ThreadPoolExecutor:
    """Those that wait for calls elsewhere, for all runs: of threads made for each step the allocator would keep memory."""
    return _threads(MOST, "waiting")


def _run_on(threads, lanes, work, report, out):
    idle = list(reversed(lanes))
    outside, inference = _outside(lanes[0]), torch.is_inference_mode_enabled()  # which is a thread's own
    while True:
        if outside is not None:
            idle = [lanes[0]] * (outside.lanes - len(out))
        while idle and (call := work.next_call()) is not None:
            lane = idle.pop()
            out[threads.submit(_run, call, lane, inference)] = call, lane
        if not out:
            return
        report(len(out), len(out) + len(idle))
        for future in _finished(out):
            call, lane = out.pop(future)
            call.done(future.result())
            idle.append(lane)


def _finished(out) -> set[Future]:
    while True:
        management.throw_exception_if_processing_interrupted()
        finished, _ = wait(out, POLL, FIRST_COMPLETED)
        if finished:
            return finished


def _run(call, lane, inference):
    outside = _outside(lane)
    with torch.inference_mode(inference), nullcontext() if outside is None else outside.turn:
        return call.run(lane)


def _outside(lane) -> Elsewhere | None:
    options = lane.get("transformer_options", {})
    return options[ELSEWHERE] if LANE in options else None
