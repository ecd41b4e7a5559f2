"""The reckoned memory against what is counted on the meta device."""

import pytest
from families import TINY
from test_chunks import SVD, svd_peak
from unet.memory import activation_bytes

MIB = 2**20


@pytest.mark.parametrize(("frames", "size", "budget"), [
    (25, (72, 128), 512 * MIB), (14, (72, 128), 512 * MIB), (14, (72, 128), 128 * MIB), (14, (40, 64), 512 * MIB),
    (25, (72, 128), None), (3, (33, 57), None),
])
def test_reckoned_is_near_counted(frames, size, budget):
    counted = svd_peak(frames, budget, size)
    reckoned = activation_bytes(SVD, frames, *size, 2, budget)
    assert 0.9 <= reckoned / counted <= 1.1


def test_more_frames_need_more():
    config = TINY["svd"]
    assert activation_bytes(config, 28, 8, 8, 2, None) == 2 * activation_bytes(config, 14, 8, 8, 2, None)
