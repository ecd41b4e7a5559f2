"""What a client on the websocket sees while a prompt runs: each step, a preview, and the end at once after a cancel."""

import io
import struct
import time
from itertools import pairwise

import pytest
from PIL import Image

from support.client import watch
from support.prompts import only, svd

pytestmark = pytest.mark.slow

PREVIEW_IMAGE = 1  # type of a binary message, protocol.py of the host


def test_each_step_is_shown_with_a_preview(server):
    prompt = svd(steps=4)
    watched = watch(server, prompt)
    assert watched.events[-1][0] == "execution_success", watched.events[-1]
    steps = [(value, top) for _, value, top in watched.progress(only(prompt, "TemporalUNetSVDSampler"))]
    assert sorted(set(steps) - {(0, 4)}) == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(watched.previews) >= 3
    for preview in watched.previews:
        kind, _ = struct.unpack(">II", preview[:8])
        assert kind == PREVIEW_IMAGE
        assert min(Image.open(io.BytesIO(preview[8:])).size) >= 8


def test_a_cancel_ends_the_sampling_within_one_network_call(server):
    prompt = svd(width=192, height=192, frames=6, steps=1000)
    sampler = only(prompt, "TemporalUNetSVDSampler")
    cancelled = {}

    def cancel_after_the_third_step(watched):
        steps = watched.progress(sampler)
        if not cancelled and steps and steps[-1][1] >= 3:
            cancelled["at"], cancelled["step"] = time.monotonic(), steps[-1][1]
            server.interrupt()

    watched = watch(server, prompt, cancel_after_the_third_step)
    steps = watched.progress(sampler)
    step_times = [later[0] - earlier[0] for earlier, later in pairwise(steps) if later[1] > earlier[1]]
    assert watched.events[-1][0] == "execution_interrupted", watched.events[-1]
    assert watched.events[-1][1]["node_id"] == sampler
    # euler asks the network once a step, for positive and negative together.
    assert steps[-1][1] <= cancelled["step"] + 1
    took = watched.times[-1] - cancelled["at"]
    assert took < 1.5 * max(step_times) + 0.5, f"{took:.2f} s after the cancel, steps took {step_times}"

    frames = server.pictures(server.run(svd()))
    assert frames.std() > 10
