"""Prompts saved by older versions run as before: inputs that are gone have no effect."""

import numpy as np
import pytest

from support.prompts import node, svd

WINDOWS = {"frames": 3, "window_frames": 2, "window_overlap": 1}


@pytest.mark.parametrize("noise", [
    *(pytest.param(noise, marks=[pytest.mark.slow, pytest.mark.one_host]) for noise in ("independent", "shuffled")), ["noise", 0],
], ids=str)
def test_window_noise_has_no_effect(server, noise):
    expected = server.pictures(server.run(svd(seed=4, **WINDOWS)))
    old = svd(seed=4, window_noise=noise, **WINDOWS)
    if noise == ["noise", 0]:
        old["noise"] = node("PrimitiveString", value="shuffled")
    assert np.array_equal(server.pictures(server.run(old)), expected)


def test_inputs_that_moved_to_video_options_act_as_there(server):
    inputs = {"window_frames": 2, "window_overlap": 1, "closed_loop": True, "guidance_start": 0.5}
    old = svd(seed=4, frames=3, **inputs)
    new = svd(seed=4, frames=3, options=["options", 0])
    new["options"] = node("TemporalUNetVideoOptions", **{
        "window_frames": 0, "window_overlap": 6, "closed_loop": False, "keep_colors": True, "guidance_start": 0.0,
        "guidance_end": 1.0, **inputs,
    })
    expected = server.pictures(server.run(old))
    assert np.array_equal(server.pictures(server.run(new)), expected)
    assert not np.array_equal(server.pictures(server.run(svd(seed=4, frames=3))), expected)
