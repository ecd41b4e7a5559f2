"""Prompts saved by older versions run as before: inputs that are gone have no effect."""

import numpy as np
import pytest

from support.prompts import node, svd

WINDOWS = {"frames": 3, "window_frames": 2, "window_overlap": 1}


@pytest.mark.parametrize("noise", ["independent", "shuffled", ["noise", 0]], ids=str)
def test_window_noise_has_no_effect(server, noise):
    expected = server.pictures(server.run(svd(seed=4, **WINDOWS)))
    old = svd(seed=4, window_noise=noise, **WINDOWS)
    if noise == ["noise", 0]:
        old["noise"] = node("PrimitiveString", value="shuffled")
    assert np.array_equal(server.pictures(server.run(old)), expected)
