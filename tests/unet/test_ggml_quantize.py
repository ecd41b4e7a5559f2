"""Bytes of quantized tensors against those that ggml's own package writes."""

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from unet.weights.ggml_quantize import QUANTIZERS, quantize

SHARE = {"Q8_0": 0.0065, "Q5_1": 0.04, "Q5_0": 0.046, "Q4_1": 0.082, "Q4_0": 0.09}  # error of normal numbers, of their size


def blocks() -> torch.Tensor:
    """Blocks of many sizes, and such as ask how a tie is broken: zeros, equal numbers, halves, both signs as large, tiny ones."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(3000, 32, generator=generator) * torch.logspace(-9, 4, 3000)[:, None]
    halves = torch.arange(-16, 16).float() / 2
    odd = [
        torch.zeros(32), torch.full((32,), -2.5), torch.full((32,), 1e-7), halves, halves * 127, halves.flip(0), halves / 3,
        torch.tensor([1.0, -1.0] * 16), torch.tensor([-1.0, 1.0] * 16), torch.tensor([0.0] * 31 + [6e-8]),
        torch.tensor([127.0, 0.5, -0.5, 1.5] * 8), torch.linspace(3, 4, 32),
    ]
    return torch.cat((drawn, torch.stack(odd)))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_the_bytes_are_those_of_the_public_package(kind):
    values = blocks()
    theirs = quants.quantize(values.numpy(), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(quantize(values, kind).numpy(), theirs.reshape(-1))
    half = values.clamp(-60000, 60000).half() + 0.0  # no -0.0: which zero is the lowest of a block depends on the machine
    theirs = quants.quantize(half.float().numpy(), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(quantize(half, kind).numpy(), theirs.reshape(-1))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_the_error_is_that_of_the_format(kind):
    values = torch.randn(64, 320, generator=torch.Generator().manual_seed(0))
    read = quants.dequantize(quantize(values, kind).numpy(), gguf.GGMLQuantizationType[kind]).reshape(64, 320)
    assert (torch.from_numpy(read) - values).norm() / values.norm() < SHARE[kind]


def test_numbers_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="33 numbers are no whole blocks of Q8_0, which hold 32"):
        quantize(torch.zeros(33), "Q8_0")
