"""Video in bounded memory under the host: one branch at a time, smaller parts where memory runs out, a truthful estimate."""

import logging
from unittest.mock import patch

import pytest
import torch
from families import relative_error
from oracle import Pair, prompts, sample
from unet import activation_bytes

FRAMES = 4


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("memory"), "svd")


@pytest.fixture
def run(svd):
    return lambda model=None: sample(model or svd.ours, *prompts(svd.config), frames=FRAMES, cfg=2.5)


@pytest.fixture
def large(pack):
    """Small clips count as large ones."""
    with patch.object(pack("nodes.bridge.memory"), "ONE_BY_ONE", 0):
        yield


def rows_of(net):
    """The list of rows that each call of the network's first convolution will take."""
    rows = []
    handle = net.input_blocks[0][0].register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    return rows, handle


def test_branches_of_a_large_clip_run_one_by_one_with_the_same_result(svd, run, large):
    rows, handle = rows_of(svd.ours.model.diffusion_model)
    apart = run()
    handle.remove()
    assert set(rows) == {FRAMES}
    assert relative_error(apart, sample(svd.host, *prompts(svd.config), frames=FRAMES, cfg=2.5)) <= 1e-5


def test_branches_of_a_small_clip_run_together(svd, run):
    rows, handle = rows_of(svd.ours.model.diffusion_model)
    run()
    handle.remove()
    assert set(rows) == {2 * FRAMES}


def test_each_branch_is_announced_to_patches_as_the_host_does(svd, run, large):
    seen = []

    def patched(q, k, v, extra):
        seen.append((tuple(extra["cond_or_uncond"]), len(extra["uuids"]), len(extra["sigmas"])))
        return q, k, v

    model = svd.ours.clone()
    model.set_model_attn1_patch(patched)
    run(model)
    assert {entry[0] for entry in seen} == {(0,), (1,)}
    assert {entry[1:] for entry in seen} == {(1, FRAMES)}


def test_control_residuals_follow_their_branch(svd, pack, large):
    """Residuals of all rows, of one video's rows and of one row, against one call with the whole batch."""
    net = svd.ours.model.diffusion_model
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    x, y = random(2 * FRAMES, 8, 8, 8), random(2 * FRAMES, svd.config.adm_channels)
    context = random(2 * FRAMES, 1, svd.config.context_dim)
    width = svd.config.model_channels
    skips = [random(rows, width, 8, 8) for rows in (2 * FRAMES, FRAMES, 1)]
    skips += [None] * (svd.config.num_skips - len(skips))

    def call():
        options = {"cond_or_uncond": [0, 1]}
        return net(x, torch.full((2 * FRAMES,), 0.3), context, y, control={"output": list(skips)}, transformer_options=options)

    apart = call()
    with patch.object(pack("nodes.bridge.memory"), "ONE_BY_ONE", 2**60):
        assert relative_error(apart, call()) <= 1e-5


def fails(times):
    """A forward hook that runs out of memory so many times."""
    left = [times]

    def hook(module, args):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("out of memory (raised by the test)")

    return hook


def test_out_of_memory_goes_on_in_smaller_parts_with_the_same_result(svd, run, caplog):
    expected = run()
    layer = svd.ours.model.diffusion_model.input_blocks[4][0]
    handle = layer.register_forward_pre_hook(fails(2))
    with caplog.at_level(logging.WARNING):
        made = run()
    handle.remove()
    told = [record.message for record in caplog.records if "out of memory" in record.message]
    assert len(told) == 2 and "128 MiB" in told[0] and "32 MiB" in told[1]
    assert relative_error(made, expected) <= 1e-5


def test_out_of_memory_in_the_smallest_parts_is_an_error(svd, run):
    handle = svd.ours.model.diffusion_model.input_blocks[4][0].register_forward_pre_hook(fails(99))
    with pytest.raises(torch.OutOfMemoryError):
        run()
    handle.remove()


def test_little_free_memory_chooses_smaller_parts(svd, pack):
    memory = pack("nodes.bridge.memory")
    x = torch.empty(25, 4, 72, 128, device="meta", dtype=torch.float16)
    need = [memory.needed(svd.config, 25, 72, 128, 2, budget) for budget in memory.BUDGETS]
    for level, free in enumerate(need[:2]):
        with patch.object(memory.management, "get_free_memory", lambda device, free=free: free):
            assert memory.fitting_budget(svd.config, x, 25) == level


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_the_memory_told_to_the_host_is_that_of_one_branch(svd, pack, branches):
    budget = pack("nodes.bridge.memory").BUDGETS[0]
    shapes = {"c_crossattn": [torch.Size([25, 1, 1024])] * branches}
    told = svd.ours.model.memory_required([25 * branches, 4, 72, 128], cond_shapes=shapes)
    need = activation_bytes(svd.config, 25, 72, 128, 4, budget)
    assert need <= told <= 1.5 * need
    assert told < svd.host.model.memory_required([25 * branches, 4, 72, 128], cond_shapes=shapes)
