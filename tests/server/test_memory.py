"""What the server holds stays the same, however prompts end."""

import random
import time

import pytest

from support.client import memory, watch
from support.prompts import only, svd, with_control

pytestmark = pytest.mark.slow

SAMPLER = "TemporalUNetSVDSampler"


def assert_same(held: list[dict[str, int]]) -> None:
    """The smallest of the last three measures is no more than the second.

    Before the first one the process gets what it keeps: what is tried once, and the allocator's pages. A prompt that left its UNet
    behind would add 90 MB each time; what the allocator keeps goes up and down by some 50 MB.
    """
    for name, before in held[1].items():
        last = min(measure[name] for measure in held[-3:])
        assert last - before <= 60e6, [f"{measure[name] / 1e6:.0f} MB" for measure in held]


def test_ten_prompts_end_with_the_memory_of_the_second(fresh_server):
    held = []
    for _ in range(10):
        fresh_server.run(svd())
        held.append(memory(fresh_server))
    assert_same(held)


def test_errors_leave_nothing_behind(fresh_server):
    """An error during sampling: model and ControlNet are loaded by then."""
    held = []
    for _ in range(5):
        fresh_server.fault(with_control(prompt := svd(), only(prompt, SAMPLER)))
        fresh_server.run(svd())
        held.append(memory(fresh_server))
    assert_same(held)


def test_twenty_cancels_at_random_moments_leave_nothing_behind(fresh_server):
    """While the models load, in a step, between two windows: the clip takes three windows a step."""
    held = []
    moment = random.Random(0)
    for index in range(20):
        if index % 4 == 0:
            fresh_server.post("/free", {"unload_models": True, "free_memory": True})

        def cancel(watched):
            if watched.events[-1][0] == "execution_start":
                time.sleep(moment.uniform(0, 1))
                fresh_server.interrupt()

        prompt = svd(frames=11, steps=1000, window_frames=5, window_overlap=2)
        assert watch(fresh_server, prompt, cancel).events[-1][0] == "execution_interrupted"
        if index % 4 == 3:
            fresh_server.run(svd())
            held.append(memory(fresh_server))
    assert_same(held)
