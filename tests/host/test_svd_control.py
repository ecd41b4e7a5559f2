"""SVD's ControlNet in bounded memory: videos one by one, smaller chunks where memory runs out, a true estimate; and other SVDs."""

import logging
from dataclasses import replace
from unittest.mock import patch

import comfy.ops
import pytest
import torch

from support.controls import ours, pairs, residuals_of, svd_net  # noqa: F401  (fixtures among them)
from support.families import relative_error
from support.oracle import CPU, SMALL, fill, hints, prompts, run_node, sample

FRAMES = 3
MIB = 2**20


@pytest.fixture
def residuals(pairs, ours, svd_net):
    """What the net gives for two videos of three frames."""
    pair = pairs("svd")
    x = torch.randn(2 * FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(6))

    def given(count=FRAMES):
        return residuals_of(ours(prompts(pair.config), svd_net, hints(count))[0][0][1]["control"], pair, x)

    return given


def same(given, expected):
    return all(relative_error(a, b) <= 1e-5 for place in expected for a, b in zip(given[place], expected[place], strict=True))


def rows_of(net):
    rows = []
    return rows, net.input_blocks[0][0].register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))


@pytest.mark.parametrize("images", [1, FRAMES])
def test_large_videos_run_one_by_one_with_the_same_residuals(pack, svd_net, residuals, images):
    expected = residuals(images)
    rows, handle = rows_of(svd_net.control_model)
    with patch.object(pack("nodes.bridge.model.memory_budget"), "ONE_BY_ONE", 0):
        apart = residuals(images)
    handle.remove()
    assert rows == [FRAMES, FRAMES] and same(apart, expected)


def test_small_videos_run_together(svd_net, residuals):
    rows, handle = rows_of(svd_net.control_model)
    residuals()
    handle.remove()
    assert rows == [2 * FRAMES]


def test_out_of_memory_goes_on_in_smaller_chunks_with_the_same_residuals(pack, svd_net, residuals, monkeypatch, caplog):
    monkeypatch.setattr(pack("nodes.bridge.model.memory_budget"), "BUDGETS", (MIB, MIB // 4))
    expected, left = residuals(), [1]

    def fails(module, args):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("out of memory (raised by the test)")

    handle = svd_net.control_model.input_blocks[4][0].register_forward_pre_hook(fails)
    with caplog.at_level(logging.WARNING):
        given = residuals()
    handle.remove()
    assert any("out of memory" in record.message for record in caplog.records) and same(given, expected)


def test_images_are_embedded_one_by_one(svd_net, residuals):
    rows = []
    hint_net = svd_net.control_model.controlnet_cond_embedding
    handle = hint_net.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    residuals()
    handle.remove()
    assert rows == [1] * FRAMES


def test_what_stays_next_to_the_unet_is_reported_to_the_host(pairs, ours, svd_net, residuals):
    """Both halves' residuals and the embedded images, at the images' size."""
    control = ours(prompts(pairs("svd").config), svd_net, hints(FRAMES))[0][0][1]["control"]
    given = residuals()
    embedded = FRAMES * pairs("svd").config.model_channels * 8 * 8 * 4
    stays = sum(residual.nbytes for residual in given["output"] + given["middle"]) + embedded
    assert control.inference_memory_requirements(torch.float32) == stays


def test_a_long_clip_is_reported_as_one_window(pairs, ours, svd_net):
    conds = prompts(pairs("svd").config)
    bytes_of = [ours(conds, svd_net, hints(n))[0][0][1]["control"].inference_memory_requirements(torch.float32) for n in (25, 60)]
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.slow
@pytest.mark.one_host
def test_a_cancel_leaves_the_next_run_as_it_was(pairs, ours, svd_net):
    import comfy.model_management as management

    pair = pairs("svd")
    conds = ours(prompts(pair.config), svd_net, hints(FRAMES))
    before = sample(pair.ours, *conds, frames=FRAMES)

    def cancels(module, args):
        raise management.InterruptProcessingException()

    handle = svd_net.control_model.input_blocks[4][0].register_forward_pre_hook(cancels)
    with pytest.raises(management.InterruptProcessingException):
        sample(pair.ours, *conds, frames=FRAMES)
    handle.remove()
    assert torch.equal(sample(pair.ours, *conds, frames=FRAMES), before)


OTHERS = {  # how a ControlNet is built differently from its UNet -> what the message says of both
    "widths": ({"channel_mult": (1, 2, 2, 2)}, "channels [32, 64, 64, 64] in ", "channels [32, 64, 128, 128] in "),
    "levels": (
        {"channel_mult": (1, 2), "num_res_blocks": (2, 2), "depth_in": (1, 1, 0, 0), "depth_out": (0, 0, 0, 1, 1, 1),
         "self_attention": (True, True)},
        "channels [32, 64] in [2, 2] blocks", "channels [32, 64, 128, 128] in [2, 2, 2, 2] blocks",
    ),
}


@pytest.mark.parametrize("model", ["ours", "host"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_net_of_another_svd_is_refused_before_any_network_runs(pack, pairs, node, model, name):
    """Also through the host's own node."""
    changes, found, expected = OTHERS[name]
    bridge, pair, calls = pack("nodes.bridge.control.svd_control"), pairs("svd"), []
    config = pack("unet").ControlNetConfig(replace(SMALL["svd"], **changes), 3, (4, 6, 8, 10))
    net = bridge.SVDControlNet(config, operations=comfy.ops.disable_weight_init, dtype=torch.float32)
    control = bridge.SVDControl(fill(net, 13), load_device=CPU)
    apply = node("ControlNetApplyAdvanced" if model == "host" else "TemporalUNetApplyControlNetResiduals")
    model = getattr(pair, model)
    names = "" if model is pair.host else "Apply ControlNet Residuals: "
    handles = [n.register_forward_pre_hook(lambda module, args: calls.append(1)) for n in (net, model.model.diffusion_model)]
    message = f"^{names}this ControlNet is for a UNet with .* Load the UNet that it was trained with"
    with pytest.raises(ValueError, match=message) as error:
        sample(model, *run_node(apply, *prompts(pair.config), control, hints(FRAMES), 1.0, 0.0, 1.0), frames=FRAMES)
    for handle in handles:
        handle.remove()
    of_net, of_model = str(error.value).split(", the model has ")
    assert found in of_net and expected in of_model and not calls
