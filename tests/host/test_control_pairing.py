"""Which ControlNet goes with which model: wrong pairings inside a family, and images and masks in every form."""

from dataclasses import replace

import comfy.ops
import pytest
import torch

from support.controls import nets, ours, pairs, residuals_of, run, svd_net  # noqa: F401  (fixtures among them)
from support.families import TINY, random_weights, relative_error
from support.oracle import CPU, ROWS, SMALL, fill, hints, host_model, prompts, run_node, sample

APPLY, COMPUTE = "TemporalUNetApplyControlNetResiduals", "TemporalUNetComputeControlNetResiduals"


def koala():
    """SDXL's relative with one block in each level of its down path."""
    return replace(TINY["koala_1b"], model_channels=32, head_channels=32)


def error_of(model, conds, **options):
    """What is raised before the network runs."""
    calls = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(ValueError, match="^Apply ControlNet Residuals: ") as error:
        run(model, conds, **options)
    handle.remove()
    assert not calls
    return str(error.value)


@pytest.mark.slow
@pytest.mark.one_host
def test_a_net_or_adapter_for_a_larger_relative_is_refused(nets, ours):
    model = host_model(random_weights(koala()), ROWS["koala_1b"], head_channels=32)
    conds = prompts(koala())
    assert "this ControlNet is for a UNet with channels [32, 64, 128] in [2, 2, 2] blocks, the model has" in error_of(
        model, ours(conds, nets("sdxl"), hints(1))
    )
    error = error_of(model, ours(conds, nets("sdxl adapter"), hints(1)))
    assert "this ControlNet is a T2I-Adapter for SDXL, the model is SDXL" in error


def test_those_of_stable_diffusion_1_are_refused_by_its_tiny_relative(pairs, nets, ours):
    conds, model = prompts(SMALL["sd1_tiny"]), pairs("sd1_tiny").ours
    assert "this ControlNet is for a UNet with channels" in error_of(model, ours(conds, nets("sd1"), hints(1)))
    assert "a T2I-Adapter for Stable Diffusion 1" in error_of(model, ours(conds, nets("sd1 adapter"), hints(1)))


@pytest.mark.parametrize("name, width", [("sv3d_u", 256), pytest.param("sv3d_p", 1280, marks=pytest.mark.slow)])
def test_an_svd_net_is_refused_by_a_model_that_takes_another_motion(ours, svd_net, name, width):
    config = replace(TINY[name], model_channels=32, head_channels=32)
    model = host_model(random_weights(config), ROWS[name], head_channels=32)
    error = error_of(model, ours(prompts(config), svd_net, hints(1)))
    assert f"takes a motion vector of width 768, the model one of {width}. Load" in error


@pytest.mark.slow
@pytest.mark.one_host
def test_a_spatial_net_that_takes_no_motion_goes_with_every_svd(pack, pairs, ours):
    bridge = pack("nodes.bridge.control.svd_control")
    encoder = replace(SMALL["svd"], adm_channels=None, temporal=False)
    config = pack("unet").ControlNetConfig(encoder, 3, (4, 6, 8, 10))
    net = bridge.SVDControlNet(config, operations=comfy.ops.disable_weight_init, dtype=torch.float32)
    control = bridge.SVDControl(fill(net, 13), load_device=CPU)
    pair = pairs("svd")
    conds = prompts(pair.config)
    assert relative_error(run(pair.ours, ours(conds, control, hints(1))), run(pair.ours, conds)) > 1e-4


# images and masks


@pytest.mark.slow
@pytest.mark.one_host
def test_gray_and_transparent_images_are_taken(pairs, nets, ours):
    pair, rgb = pairs("sd1"), hints(2)
    gray = rgb[..., :1]

    def made(image):
        return run(pair.ours, ours(prompts(pair.config), nets("sd1"), image))

    assert relative_error(made(gray), made(gray.repeat(1, 1, 1, 3))) <= 1e-5
    assert relative_error(made(torch.cat([rgb, torch.rand_like(gray)], dim=-1)), made(rgb)) <= 1e-5
    assert relative_error(made(gray), made(rgb)) > 1e-3


@pytest.mark.slow
@pytest.mark.one_host
def test_masks_without_or_with_a_channel_are_taken(pairs, nets, ours):
    pair, mask = pairs("sd1"), torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(4))
    conds = prompts(pair.config)

    def made(mask):
        return run(pair.ours, ours(conds, nets("sd1"), hints(1), mask=mask))

    assert torch.equal(made(mask[:, None]), made(mask))
    assert torch.equal(made(mask[0]), made(mask[:1])) and not torch.equal(made(mask[0]), made(mask))


@pytest.mark.parametrize("image", [torch.zeros(0, 64, 64, 3), torch.zeros(64, 64, 3), torch.zeros(1, 64, 64, 2)])
def test_what_is_no_image_is_refused_by_name(node, pairs, nets, image):
    conds = prompts(SMALL["sd1"])
    with pytest.raises(ValueError, match=r"^Apply ControlNet Residuals: image has shape .*, expected \[images, height, width, 3\]"):
        run_node(node(APPLY), *conds, nets("sd1"), image)
    with pytest.raises(ValueError, match="^Compute ControlNet Residuals: image has shape "):
        run_node(node(COMPUTE), pairs("sd1").ours, conds[0], nets("sd1"), image, {"samples": torch.zeros(1, 4, 8, 8)})


@pytest.mark.parametrize("mask", [torch.zeros(0, 8, 8), torch.zeros(8)])
def test_what_is_no_mask_is_refused_by_name(node, nets, mask):
    with pytest.raises(ValueError, match=r"^Apply ControlNet Residuals: mask has shape .*, expected \[masks, height, width\]"):
        run_node(node(APPLY), *prompts(SMALL["sd1"]), nets("sd1"), hints(1), mask=mask)


# work on images


@pytest.mark.slow
@pytest.mark.one_host
def test_one_image_is_prepared_once_for_each_size_of_a_step(pairs, ours, svd_net):
    """Conditions for regions show the network areas of different sizes in turn."""
    pair, sizes = pairs("svd"), [(8, 8), (8, 4), (8, 8), (8, 4)]
    control = ours(prompts(pair.config), svd_net, hints(1))[0][0][1]["control"]
    rows = []
    embedding = svd_net.control_model.controlnet_cond_embedding
    handle = embedding.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    model = pair.ours.model
    control.pre_run(model, model.model_sampling.percent_to_sigma)
    given = []
    for size in sizes:
        x = torch.ones(4, 4, *size)
        cond = {"c_crossattn": torch.ones(4, 1, 1024), "y": torch.ones(4, 768), "c_concat": torch.ones_like(x)}
        out = control.get_control(x, model.model_sampling.sigma_max.reshape(1).repeat(4), cond, 2, {"cond_or_uncond": [0, 1]})
        given.append(out["output"][0].clone())
    handle.remove()
    control.cleanup()
    assert rows == [1, 1]
    assert torch.equal(given[0], given[2]) and torch.equal(given[1], given[3]) and given[0].shape != given[1].shape


@pytest.mark.slow
def test_fewer_images_than_frames_are_each_prepared_once(pairs, ours, svd_net):
    pair, rows = pairs("svd"), []
    conds = ours(prompts(pair.config), svd_net, hints(2))
    embedding = svd_net.control_model.controlnet_cond_embedding
    handle = embedding.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    sample(pair.ours, *conds, frames=7)
    handle.remove()
    assert sum(rows) == 2
