"""The convolutional layers against their formulas in fp64 (formulas.py)."""

import pytest
import torch
from torch import nn

from support import formulas
from support.families import relative_error
from support.formulas import fill, randn
from unet import layers
from unet.hooks import Call

PLAIN = {"operations": nn, "factory": {"dtype": None, "device": None}}


@pytest.mark.parametrize("dim", [32, 320])
def test_timestep_embedding_is_cosines_then_sines(dim):
    times = [0.0, 1.0, 250.5, 999.0]
    expected = torch.stack([formulas.sinusoids(t, dim) for t in times])
    assert torch.allclose(layers.timestep_embedding(torch.tensor(times), dim).double(), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_timestep_embedding_is_computed_in_fp32_whatever_the_dtype_of_large_timesteps(dtype):
    times = torch.tensor([512, 992])  # exact in each dtype
    expected = torch.stack([formulas.sinusoids(float(t), 320) for t in times])
    embedding = layers.timestep_embedding(times.to(dtype), 320)
    assert embedding.dtype == torch.float32
    assert torch.allclose(embedding.double(), expected, atol=1e-4)


def test_an_odd_embedding_ends_in_a_zero():
    expected = torch.cat([formulas.sinusoids(3.0, 6), torch.zeros(1)])
    assert torch.allclose(layers.timestep_embedding(torch.tensor([3.0]), 7)[0].double(), expected, atol=1e-6)


@pytest.mark.parametrize("channels, out_channels", [(32, 32), (32, 64), (96, 32)])
def test_res_block_equals_its_formula(channels, out_channels):
    block, w = fill(layers.ResBlock(channels, 16, out_channels, **PLAIN))
    x, emb = randn(2, channels, 5, 6) * 0.01, randn(2, 16)  # small, so that the eps of the norms shows
    assert relative_error(block(x, Call(emb)), formulas.res_block(x, emb, w)) <= 1e-10


@pytest.mark.parametrize("budget", [None, 1, 15_000, 60_000], ids=["whole", "pixels", "strips", "strips, some kept"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_video_res_block_equals_its_formula(frames, batch, budget):
    block, w = fill(layers.VideoResBlock(64, 16, 32, **PLAIN))
    x, emb = randn(batch * frames, 64, 5, 3) * 0.01, randn(batch * frames, 16)
    made = block(x, Call(emb, num_frames=frames, budget=budget))
    assert relative_error(made, formulas.video_res_block(x, emb, w, frames)) <= 1e-10


@pytest.mark.parametrize("still", [None, [1, 0, 0, 1, 1, 0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_strips_are_as_near_to_the_formula_as_the_whole(dtype, still):
    """Two videos of three frames with means far from zero; the input is left as it is."""
    block, _ = fill(layers.VideoResBlock(32, 16, 32, **PLAIN))
    block = block.to(dtype)
    x, emb = (4 + randn(6, 32, 7, 5)).to(dtype), randn(6, 16).to(dtype)
    still = still and torch.tensor(still)
    before = x.clone()
    strips = block(x, Call(emb, num_frames=3, image_only=still, budget=10_000))
    assert torch.equal(x, before)
    whole = block(x, Call(emb, num_frames=3, image_only=still))
    exact = block.double()(x.double(), Call(emb.double(), num_frames=3, image_only=still))
    assert strips.dtype == dtype
    assert relative_error(strips, exact) <= 1.05 * relative_error(whole, exact)
    assert dtype != torch.float32 or relative_error(strips, exact) <= 1e-6


def test_a_video_that_fits_its_budget_runs_whole():
    block, _ = fill(layers.VideoResBlock(32, 16, 32, **PLAIN))
    x, emb = randn(4, 32, 4, 4), randn(4, 16)
    assert torch.equal(block(x, Call(emb, num_frames=4, budget=8 * x.nbytes)), block(x, Call(emb, num_frames=4)))


@pytest.mark.parametrize(("budget", "strips", "again"), [(1, 16, 16), (16_384, 16, 8), (65_535, 4, 0)])
def test_strips_that_the_budget_cannot_keep_are_computed_twice(budget, strips, again):
    block, _ = fill(layers.VideoResBlock(32, 16, 32, **PLAIN))
    x, emb = randn(4, 32, 4, 4), randn(4, 16)
    calls = {"first": 0, "second": 0}
    for name, layer in (("first", block.time_stack.in_layers), ("second", block.time_stack.out_layers)):
        layer[-1].register_forward_pre_hook(lambda module, args, name=name: calls.update({name: calls[name] + 1}))
    block(x, Call(emb, num_frames=4, budget=budget))
    assert calls == {"first": strips + again, "second": strips}


def test_norms_over_time_see_every_frame_of_the_video():
    """Two convolutions reach 2 frames; the last of 6 frames reaches the first through the norms alone."""
    block, _ = fill(layers.TemporalResBlock(32, 16, **PLAIN))
    x, call = randn(1, 32, 6, 4, 4), Call(randn(6, 16), num_frames=6)
    changed = x.clone()
    changed[:, :, -1] *= 3
    difference = block(changed, call)[:, :, 0] - block(x, call)[:, :, 0]
    assert difference.abs().max() > 1e-3


def test_videos_of_a_batch_do_not_mix_in_a_video_res_block():
    block, _ = fill(layers.VideoResBlock(32, 16, 32, **PLAIN))
    x, emb = randn(6, 32, 4, 4), randn(6, 16)
    both = block(x, Call(emb, num_frames=3))
    for rows in (slice(0, 3), slice(3, 6)):
        assert relative_error(both[rows], block(x[rows], Call(emb[rows], num_frames=3))) <= 1e-12


def test_alpha_blender_multiplies_the_spatial_branch_by_the_sigmoid():
    blender = layers.AlphaBlender(factory={"device": None}).requires_grad_(False)
    blender.mix_factor.fill_(2.0)
    s = 0.8807970779778823  # 1 / (1 + e^-2)
    spatial, temporal = torch.full((2, 3, 1, 1), 10.0), torch.full((2, 3, 1, 1), -1.0)
    assert torch.allclose(blender(spatial, temporal, None), torch.full((2, 3, 1, 1), s * 10 - (1 - s)))


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (3, 6, 4)], ids=["image", "tokens"])
def test_alpha_blender_keeps_the_spatial_branch_of_still_images(shape):
    blender = layers.AlphaBlender(factory={"device": None}).requires_grad_(False)
    spatial, temporal = torch.full(shape, 2.0), torch.full(shape, 4.0)
    out = blender(spatial, temporal, torch.tensor([1.0, 0.0, 1.0]))
    for row, expected in enumerate([2.0, 3.0, 2.0]):
        assert torch.equal(out[row], torch.full(shape[1:], expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_alpha_blender_keeps_its_mix_factor_in_fp32(dtype):
    block = layers.VideoResBlock(32, 16, 32, operations=nn, factory={"dtype": dtype, "device": "meta"})
    assert block.time_mixer.mix_factor.dtype == torch.float32


@pytest.mark.parametrize("size", [None, (6, 10), (5, 9), (7, 3)])
def test_upsample_takes_the_nearest_pixel_up_to_the_size_of_the_next_skip_then_convolves(size):
    layer, w = fill(layers.Upsample(4, **PLAIN))
    x = randn(2, 4, 3, 5)
    height, width = size or (6, 10)
    rows = [i * 3 // height for i in range(height)]
    columns = [j * 5 // width for j in range(width)]
    expected = formulas.conv2d(x[:, :, rows][:, :, :, columns], w, "conv")
    assert relative_error(layer(x, Call(None, next_skip=size and torch.Size((2, 8, *size)))), expected) <= 1e-12


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (3, 8)])
def test_downsample_takes_every_second_pixel_and_rounds_odd_sizes_up(size):
    layer, w = fill(layers.Downsample(4, **PLAIN))
    x = randn(2, 4, *size)
    padded = torch.zeros(2, 4, size[0] + 2, size[1] + 2, dtype=torch.float64)
    padded[:, :, 1:-1, 1:-1] = x
    expected = torch.zeros(2, 4, (size[0] + 1) // 2, (size[1] + 1) // 2, dtype=torch.float64)
    for i in range(expected.shape[2]):
        for j in range(expected.shape[3]):
            window = padded[:, :, 2 * i:2 * i + 3, 2 * j:2 * j + 3]
            expected[:, :, i, j] = torch.einsum("nchw,ochw->no", window, w["op.weight"]) + w["op.bias"]
    assert relative_error(layer(x), expected) <= 1e-12
