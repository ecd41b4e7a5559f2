"""Layers in chunks of frames and pixels: the same result, in less memory."""

from dataclasses import replace

import pytest
import torch

from support.families import TINY, inputs, random_weights, relative_error
from support.full_svd import svd_peak
from unet import Hooks, UNetModel
from unet.chunks import by_rows, spans
from unet.residuals import residual_shapes

SVD = replace(TINY["svd"], model_channels=32, head_channels=32)


def model(config):
    net = UNetModel(config, device="meta")
    net.load_state_dict(random_weights(config), assign=True)
    return net.requires_grad_(False).eval()


@pytest.mark.parametrize("name", ["svd", "sd1", "sdxl"])
@pytest.mark.parametrize("budget", [1, 100_000, 400_000])
@pytest.mark.slow
def test_the_result_does_not_depend_on_the_budget(name, budget):
    """The smallest budget runs single frames and pixels, the others several; two videos (or images), odd size."""
    net = model(TINY[name])
    frames = 5 if TINY[name].temporal else 1
    call = inputs(TINY[name], frames=frames, batch=2, size=(9, 6))
    assert relative_error(net(**call, num_frames=frames, budget=budget), net(**call, num_frames=frames)) <= 2e-6


@pytest.mark.slow
def test_rows_marked_as_still_images_keep_their_place():
    net = model(SVD)
    call = inputs(SVD, frames=4)
    still = torch.tensor([1, 0, 0, 1])
    assert relative_error(net(**call, image_only=still, budget=1), net(**call, image_only=still)) <= 2e-6


def test_a_budget_of_one_works_on_single_rows():
    net = model(SVD)
    seen = []
    net.input_blocks[1][0].in_layers.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    net(**inputs(SVD, frames=3), budget=1)
    assert seen == [1, 1, 1]


def test_patched_transformers_see_the_whole_batch():
    class Patched(Hooks):
        patched = True
        seen = []

        def attn1(self, block, x, context):
            self.seen.append(x.shape[0])
            return super().attn1(block, x, context)

    net = model(SVD)
    net(**inputs(SVD, frames=3, size=(8, 8)), hooks=Patched(), budget=1)
    assert Patched.seen[0] == 3 and Patched.seen[1] == 64  # frames in space, pixels over time


class JoinedBefore(Hooks):
    def watches(self, layer):
        return True


@pytest.mark.parametrize("config", [
    pytest.param(SVD, id="svd", marks=pytest.mark.slow), pytest.param(TINY["sd1"], id="sd1"),
])
def test_skips_that_are_joined_in_chunks_equal_those_that_are_joined_before(config):
    """With residuals on some of the skips, whose rows serve both images or videos, and a skip that a patch leaves out."""
    class WithoutOne(Hooks):
        def output_block(self, h, skip):
            return (torch.cat([h, skip], dim=1), None) if h.shape[-1] == 3 else (h, skip * 1.5)

    class WithoutOneJoinedBefore(WithoutOne, JoinedBefore):
        pass

    net = model(config)
    frames = 3 if config.temporal else 1
    call = {**inputs(config, frames=frames, batch=2, size=(9, 6)), "num_frames": frames, "budget": 1}
    shapes = residual_shapes(config, 9, 6)
    controls = [torch.randn(frames, *shape) if index % 2 else torch.zeros(frames, *shape) for index, shape in enumerate(shapes)]
    for apart, before in ((Hooks, JoinedBefore), (WithoutOne, WithoutOneJoinedBefore)):
        assert torch.equal(net(**call, controls=controls, hooks=apart()), net(**call, controls=controls, hooks=before()))


@pytest.mark.slow
def test_whatever_looks_at_an_output_block_sees_h_with_its_skip():
    net = model(SVD)
    seen = []

    def look(layer):
        seen.append((layer[0].shape, layer[1].skip))

    first, second, third = (block[0] for block in list(net.output_blocks)[:3])
    first.register_forward_pre_hook(lambda module, args: look(args))
    second.register_forward_hook(lambda module, args, out: look(args))
    third.forward = lambda *args, forward=third.forward: look(args) or forward(*args)
    net(**inputs(SVD, frames=3), budget=1)
    widths = [block.in_channels for block in SVD.output_layout()]
    assert [(shape[:2], skip) for shape, skip in seen] == [((3, width), None) for width in widths[:3]]


def test_spans_cover_everything_in_equal_chunks():
    assert [(s.start, s.stop) for s in spans(7, 10, 35)] == [(0, 3), (3, 6), (6, 7)]
    assert [(s.start, s.stop) for s in spans(7, 10, 5)] == [(i, i + 1) for i in range(7)]
    assert [(s.start, s.stop) for s in spans(7, 10, None)] == [(0, 7)]


def test_rows_follow_one_another():
    x, y = torch.randn(7, 3), torch.randn(7, 3)
    assert torch.equal(by_rows(lambda a, b: a * b, 24, 12, x, y), x * y)


MIB, GIB = 2**20, 2**30


@pytest.mark.slow
def test_a_whole_call_at_1024x576():
    whole, default, smaller, tightest = (svd_peak(25, budget) for budget in (None, 512 * MIB, 128 * MIB, 32 * MIB))
    assert whole >= 3 * GIB  # or the rest says nothing
    assert 1.25 * GIB >= default > smaller >= tightest
    assert tightest <= 0.87 * GIB


@pytest.mark.slow
def test_fewer_frames_need_less():
    default, tightest = svd_peak(14, 512 * MIB), svd_peak(14, 32 * MIB)
    assert 0.9 * GIB >= default > tightest
    assert tightest <= 0.5 * GIB
