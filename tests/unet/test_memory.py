"""The estimated memory against what is counted on the meta device."""

from dataclasses import replace

import pytest
import torch

from support.families import TINY
from support.full_svd import SVD, OutputOnly, svd_peak
from support.live import peak_bytes
from unet import ControlNetConfig, SVDControlNet
from unet.memory import activation_bytes, encoder_bytes, residual_bytes

MIB = 2**20


@pytest.mark.parametrize(("frames", "size", "budget"), [
    (25, (72, 128), None), (25, (72, 128), 512 * MIB), (14, (72, 128), 128 * MIB), (14, (40, 64), 32 * MIB), (3, (33, 57), None),
    (3, (33, 57), 32 * MIB),
])
@pytest.mark.slow
def test_counted_is_at_most_what_was_estimated_and_near_it(frames, size, budget):
    counted = svd_peak(frames, budget, size)
    estimated = activation_bytes(SVD, frames, *size, 2, budget)
    assert 1 <= estimated / counted <= 1.1


@pytest.mark.parametrize("frames", [14, 25])
def test_smaller_chunks_need_less(frames):
    default, smaller = (activation_bytes(SVD, frames, 72, 128, 2, budget) for budget in (512 * MIB, 128 * MIB))
    assert smaller < default < activation_bytes(SVD, frames, 72, 128, 2, None)


def test_a_network_without_attention_has_no_context_to_count():
    config = replace(TINY["svd"], depth_in=(0,) * 8, depth_out=(0,) * 12, depth_middle=0, context_dim=None)
    attending = activation_bytes(TINY["svd"], 14, 8, 8, 2, None)
    assert 0 < activation_bytes(config, 14, 8, 8, 2, None) < attending
    assert residual_bytes(config, 14, 8, 8, 2) == residual_bytes(TINY["svd"], 14, 8, 8, 2)


def test_more_frames_need_more():
    one, two = (activation_bytes(TINY["svd"], frames, 8, 8, 2, None) for frames in (14, 28))
    assert 1.9 * one <= two <= 2 * one  # the context over time is there once


@pytest.mark.parametrize(("frames", "size", "budget"), [
    (25, (72, 128), 512 * MIB), (14, (72, 128), 128 * MIB), (14, (40, 64), 32 * MIB), (3, (33, 57), None),
])
@pytest.mark.slow
def test_a_controlnets_memory_and_residuals(frames, size, budget):
    half = {"dtype": torch.float16, "device": "meta"}
    net = SVDControlNet(ControlNetConfig(SVD, 3, (16, 32, 96, 256)), **half)
    call = {
        "x": torch.empty(frames, 8, *size, **half), "hint": torch.empty(frames, 320, *size, **half),
        "timesteps": torch.empty(frames, device="meta"), "context": torch.empty(frames, 1, 1024, **half),
        "y": torch.empty(frames, 768, **half),
    }
    with torch.no_grad():
        counted = peak_bytes(lambda: net(**call, budget=budget, hooks=OutputOnly()))
        residuals = net(**call, budget=budget, hooks=OutputOnly())
    assert 1 <= encoder_bytes(SVD, frames, *size, 2, budget) / counted <= 1.1
    assert residual_bytes(SVD, frames, *size, 2) == sum(residual.nbytes for residual in residuals)
