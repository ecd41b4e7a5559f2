"""Our network against the host's own on the same weights, for every member of the family."""

from dataclasses import replace
from functools import lru_cache

import comfy.ldm.modules.attention as host_attention
import pytest
import torch

from support.families import TINY, inputs, random_weights, relative_error
from support.oracle import host_unet, host_unet_config
from unet import FAMILIES, Hooks, UNetModel

ROWS = {family.name: family for family in FAMILIES}
WIDTH = 32  # channels of the first level, and of a head where its family does not say how many there are
NARROW = {
    name: replace(config, model_channels=WIDTH, head_channels=config.head_channels and WIDTH) for name, config in TINY.items()
}


@lru_cache(maxsize=1)  # the tests of a family come one after the other, and making the two takes longer than running them
def build(name):
    """Our network and the host's on the same random weights, which the tests that follow share."""
    weights = random_weights(NARROW[name])
    host = host_unet(weights, ROWS[name], head_channels=NARROW[name].head_channels)  # which copies them
    ours = UNetModel(NARROW[name], device="meta")
    ours.load_state_dict(weights, assign=True)
    return ours.requires_grad_(False).eval(), host


def call_host(unet, call, frames, **options):
    call = dict(call)
    y = call.pop("y", None)
    return unet(**call, y=y, num_video_frames=frames, transformer_options={}, **options)


@pytest.mark.slow
@pytest.mark.parametrize("size", [pytest.param((8, 8), id="even"), pytest.param((9, 15), id="odd", marks=pytest.mark.one_host)])
@pytest.mark.parametrize("name", TINY)
def test_every_family_equals_the_host(name, size):
    ours, host = build(name)
    frames = 3 if NARROW[name].temporal else 1
    call = inputs(NARROW[name], frames=frames, batch=2, size=size)
    assert relative_error(ours(**call, num_frames=frames), call_host(host, call, frames)) <= 1e-5


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("frames, batch", [(1, 1), (1, 2), (3, 2), (14, 1), (25, 2)])
def test_any_number_of_frames_equals_the_host(frames, batch):
    ours, host = build("svd")
    call = inputs(NARROW["svd"], frames=frames, batch=batch)
    assert relative_error(ours(**call, num_frames=frames), call_host(host, call, frames)) <= 1e-5


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("name", ["svd", "sd1", "sdxl", "ssd_1b"])
def test_control_residuals_equal_the_host(name):
    """The original's list (input order, then the middle) is the host's `output` and `middle`."""
    ours, host = build(name)
    frames = 3 if NARROW[name].temporal else 1
    call = inputs(NARROW[name], frames=frames, batch=2)
    skips = []
    handles = [
        block[-1].register_forward_hook(lambda module, args, out: skips.append(torch.randn_like(out)))
        for block in ours.input_blocks
    ]
    ours(**call, num_frames=frames)
    for handle in handles:
        handle.remove()
    controls = [*skips, torch.randn_like(skips[-1])]
    before = [control.clone() for control in controls]

    host_control = {"output": [0.5 * c for c in skips], "middle": [0.5 * controls[-1]], "input": []}
    expected = call_host(host, call, frames, control=host_control)
    result = ours(**call, num_frames=frames, controls=controls, control_strength=0.5)
    assert relative_error(result, expected) <= 1e-5
    assert all(torch.equal(old, new) for old, new in zip(before, controls, strict=True)), "controls were changed in place"


def test_without_a_middle_block_its_residual_leaves_the_skip_alone():
    """h is the last skip there. The host adds in place, so its residual reaches the skip as well; ours does not."""
    ours, host = build("koala_700m")
    call = inputs(NARROW["koala_700m"])
    last, expected_skip = [], []
    handles = [
        ours.input_blocks[-1][-1].register_forward_hook(lambda module, args, out: last.append(out)),
        ours.output_blocks[0][0].register_forward_pre_hook(lambda module, args: expected_skip.append(args[0])),
    ]
    ours(**call)
    residual = torch.randn_like(last[0])
    ours(**call, controls=_zeros(ours, call, residual))
    for handle in handles:
        handle.remove()
    channels = last[0].shape[1]
    joined = expected_skip[-1]
    assert torch.equal(joined[:, :channels], last[0] + residual)
    assert torch.equal(joined[:, channels:], last[0])


def _zeros(unet, call, middle):
    """Residuals of zeros for every skip of `unet`, then `middle`."""
    shapes = []
    handles = [b[-1].register_forward_hook(lambda m, a, out: shapes.append(out.shape)) for b in unet.input_blocks]
    unet(**call)
    for handle in handles:
        handle.remove()
    return [torch.zeros(shape) for shape in shapes] + [middle]


def test_the_originals_own_self_test():
    """stable-diffusion.cpp's `unet.hpp`: 3 frames of 8 channels, all inputs 0.5, timestep 999; it notes a wrong result."""
    ours, host = build("svd")
    call = {
        "x": torch.full((3, 8, 8, 8), 0.5), "timesteps": torch.full((3,), 999.0),
        "context": torch.full((3, 1, 1024), 0.5), "y": torch.full((3, 768), 0.5),
    }
    assert relative_error(ours(**call, num_frames=3), call_host(host, call, 3)) <= 1e-5


def test_still_image_rows_and_an_own_time_context():
    ours, host = build("svd")
    call = inputs(NARROW["svd"], frames=3, batch=2)
    still = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    time_context = torch.randn(6, 1, 1024)
    expected = call_host(host, call, 3, image_only_indicator=still, time_context=time_context)
    result = ours(**call, num_frames=3, image_only=still.flatten(), time_context=time_context)
    assert relative_error(result, expected) <= 1e-5


class HostAttention(Hooks):
    """The host's choice of attention, as the bridge makes it: rounding is compared between networks, not kernels."""

    def __init__(self, precision):
        self.precision = precision

    def attention(self, q, k, v, heads):
        return host_attention.optimized_attention(q, k, v, heads, attn_precision=self.precision)


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["svd", "sd1", "sd2", "sdxl"])
def test_half_precision_is_no_further_from_fp64_than_the_hosts(name, dtype):
    """Mean error of both networks in `dtype` against the same network in fp64; 3 % is the tolerance for another rounding order."""
    config = NARROW[name]
    frames = 3 if config.temporal else 1
    errors = []
    for seed in range(3 if config.temporal else 1):  # image networks run the very same kernels
        weights = {key: value.to(dtype) for key, value in random_weights(config, seed).items()}
        call = {key: value.to(dtype) for key, value in inputs(config, frames=frames, batch=2, seed=seed).items()}
        reference = host_unet({k: v.double() for k, v in weights.items()}, ROWS[name], torch.float64, config.head_channels)
        exact = call_host(reference, {k: v.double() for k, v in call.items()}, frames)
        host = host_unet(weights, ROWS[name], dtype, config.head_channels)
        ours = UNetModel(config, dtype=dtype, device="meta")
        ours.load_state_dict(weights, assign=True)
        hooks = HostAttention(host_unet_config(weights, ROWS[name]).get("attn_precision"))
        result = ours(**call, num_frames=frames, hooks=hooks)
        errors.append((relative_error(result, exact), relative_error(call_host(host, call, frames), exact)))
    our_error, host_error = (sum(each) / len(errors) for each in zip(*errors, strict=True))
    assert our_error <= 1.03 * host_error, f"ours {our_error:.2e}, the host's {host_error:.2e}"
