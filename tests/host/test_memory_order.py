"""Activations whose channels lie next to one another, as on a graphics card: the same result, and what patches are given."""

import pytest
import torch

from support.families import inputs, relative_error
from support.oracle import Pair

NAMES = ["sd1", "svd"]


@pytest.fixture(scope="module")
def pairs(pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    return {name: Pair(pack, folder, name) for name in NAMES}


@pytest.fixture
def arranged(pack, monkeypatch):
    """Every network arranges its input so; the kernels themselves stay out, since there is no card."""
    calls = []

    def arrange(x, channels):
        calls.append(channels)
        return x.contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr(pack("unet.model"), "arranged", arrange)
    return calls


def call(pair, options):
    frames = 3 if pair.config.temporal else 2
    given = inputs(pair.config, frames=frames, size=(6, 10))
    with torch.inference_mode():
        return pair.ours.model.diffusion_model(**given, transformer_options=options, num_video_frames=frames)


@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_the_same(pairs, monkeypatch, arranged, name):
    made = call(pairs[name], {})
    assert arranged
    monkeypatch.undo()
    expected = call(pairs[name], {})
    assert made.is_contiguous()
    assert relative_error(made, expected) <= 1e-5


def test_patches_between_layers_see_the_usual_order(pairs, arranged):
    seen = []
    options = {"patches": {"input_block_patch": [lambda h, options: seen.append(h.is_contiguous()) or h]}}
    call(pairs["sd1"], options)
    assert not arranged
    assert seen and all(seen)
