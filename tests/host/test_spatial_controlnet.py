"""ControlNets without layers over time on an SVD model: SVD's own spatial-only ones, and those of SD 2.1."""

from dataclasses import replace
from itertools import pairwise

import comfy.model_detection
import comfy.utils
import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from support.families import FULL, random_weights, relative_error
from support.oracle import ROWS, SMALL, Pair, controlnet, hints, host_unet_config, prompts, run_node, sample
from unet import UNetModel

CONFIG = replace(SMALL["svd"], temporal=False)
HINT_WIDTHS = (4, 6, 8, 10)
KINDS = ("spatial", "sd2")


def public_names(tensors):
    """Under diffusers' names, by the host's own table: the down path and the middle, as a ControlNet has them."""
    table = comfy.utils.unet_to_diffusers(host_unet_config(random_weights(CONFIG), ROWS["sd2"]))
    kept = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block")
    return {public: tensors[own] for public, own in table.items() if own in tensors and public.startswith(kept)}


def taps(config, make):
    """The layers that a ControlNet has besides the UNet's down path; `make(shape)` gives a tensor."""
    layers = {"conv_in": (HINT_WIDTHS[0], 3), "conv_out": (config.model_channels, HINT_WIDTHS[-1])}
    for i, (narrow, wide) in enumerate(pairwise(HINT_WIDTHS)):
        layers |= {f"blocks.{2 * i}": (narrow, narrow), f"blocks.{2 * i + 1}": (wide, narrow)}
    shapes = {f"controlnet_cond_embedding.{name}": (*widths, 3, 3) for name, widths in layers.items()}
    widths = [mult * config.model_channels for mult in (1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4, 4)]
    names = [*(f"controlnet_down_blocks.{i}" for i in range(12)), "controlnet_mid_block"]
    shapes |= {name: (width, width, 1, 1) for name, width in zip(names, widths, strict=True)}
    weights = {f"{name}.weight": make(shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": make(shape[:1]) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def pair(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("spatial"), "svd")


@pytest.fixture(scope="module")
def loaded(node, tmp_path_factory):
    """(CONTROL_NET, info) of our loader for a spatial-only file of SVD."""
    folder = tmp_path_factory.mktemp("controlnet")
    generator = torch.Generator().manual_seed(3)
    tensors = public_names(random_weights(CONFIG, seed=3))
    tensors |= taps(CONFIG, lambda shape: 0.2 * torch.randn(shape, generator=generator))
    save_file(tensors, folder / "spatial.safetensors", {"temporal_unet.head_channels": "32"})
    folder_paths.add_model_folder_path("controlnet", str(folder))
    return node("TemporalUNetControlNetLoader").execute("spatial.safetensors").result


@pytest.fixture(scope="module")
def nets(loaded):
    return {"spatial": loaded[0], "sd2": controlnet("sd2")}.__getitem__


@pytest.fixture
def ours(node):
    def apply(conds, net, image, strength=0.7, **options):
        return run_node(node("TemporalUNetApplyControlNetResiduals"), *conds, net, image, strength, 0.0, 1.0, **options)

    return apply


def residuals_and_skips(model, conds, frames=3):
    """The residuals of the one call of a step without guidance, and the shapes of what the UNet keeps for its skips."""
    seen, watched = {}, model.clone()
    unet = model.model.diffusion_model

    def call(apply_model, args):
        seen["residuals"] = {place: [r.clone() for r in rs] for place, rs in args["c"]["control"].items()}
        return apply_model(args["input"], args["timestep"], **args["c"])

    def keep(h, options):
        seen.setdefault("skips", []).append(h.shape)
        return h

    watched.set_model_unet_function_wrapper(call)
    watched.set_model_input_block_patch(keep)
    handle = unet.middle_block[2].register_forward_hook(lambda _, __, out: seen.update(middle=out.shape))
    sample(watched, *conds, frames=frames, steps=1, cfg=1.0)
    handle.remove()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ours", pytest.param("host", marks=pytest.mark.one_host)])
@pytest.mark.parametrize("kind", KINDS)
def test_residuals_fit_and_every_frame_keeps_its_own_image(pair, nets, ours, model, kind):
    model, conds, images = getattr(pair, model), prompts(pair.config), hints(3)
    seen = residuals_and_skips(model, ours(conds, nets(kind), images))
    residuals = [*seen["residuals"]["output"], *seen["residuals"]["middle"]]
    assert [r.shape for r in residuals] == [*seen["skips"], seen["middle"]] and len(residuals) == 13
    for frame in range(3):
        alone = residuals_and_skips(model, ours(conds, nets(kind), images[frame:frame + 1]))["residuals"]
        for all_frames, one in zip(residuals, [*alone["output"], *alone["middle"]], strict=True):
            assert relative_error(all_frames[frame], one[frame]) <= 1e-5
            assert relative_error(all_frames[frame], one[frame - 1]) > 1e-4


@pytest.mark.parametrize("kind", [kind if kind == "spatial" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_both_models_are_steered_alike(pair, nets, ours, kind):
    conds = prompts(pair.config)
    controlled = ours(conds, nets(kind), hints(3))
    result = sample(pair.ours, *controlled, frames=3)
    assert relative_error(result, sample(pair.host, *controlled, frames=3)) <= 1e-4
    assert relative_error(result, sample(pair.ours, *conds, frames=3)) > 1e-3


@pytest.mark.slow
def test_the_spatial_only_net_is_refused_by_image_models(pack, tmp_path, nets, ours):
    image_model = Pair(pack, tmp_path, "sd1").ours
    with pytest.raises(ValueError, match="is for Stable Video Diffusion, the model is Stable Diffusion 1"):
        sample(image_model, *ours(prompts(SMALL["sd1"]), nets("spatial"), hints(1)), frames=1, steps=1)


def test_info_states_that_it_is_spatial_only(loaded):
    assert loaded[1].startswith("SVD ControlNet, spatial only\nresiduals for every frame, each seen by itself\n")
    assert "spatial.safetensors" in loaded[1]


def test_info_of_what_the_host_loads(pack, nets, tmp_path):
    net = nets("sd2")
    tensors = {f"control_model.{name}": value.half() for name, value in net.control_model.state_dict().items()}
    save_file(tensors, tmp_path / "depth.safetensors")
    describe = pack("nodes.bridge.info.file_info").describe_controlnet_file
    first, second, third, fourth = describe(str(tmp_path / "depth.safetensors"), net)
    assert first == "ControlNet for Stable Diffusion 2 or SVD" and second.startswith("residuals for every image or frame")
    numbers = sum(value.numel() for value in tensors.values())
    assert third == f"{numbers / 1e6:,.1f} M parameters, float16 in the file" and fourth.startswith("depth.safetensors, ")
    assert describe(str(tmp_path / "depth.safetensors")) == [first, second, third, fourth]  # before it is loaded


@pytest.mark.parametrize("channels, adm, known", [(4, None, True), (8, 768, False), (8, None, False), (4, 768, False)])
def test_which_files_the_host_knows_by_itself(channels, adm, known):
    """SD 2.1's ControlNet is the host's to load; in_channels 8 or SVD's vector condition it does not recognize."""
    config = replace(FULL["svd"], temporal=False, in_channels=channels, adm_channels=adm)
    own = UNetModel(config, device="meta").state_dict()
    public = public_names(own) | taps(config, lambda shape: torch.empty(shape, device="meta"))
    assert (comfy.model_detection.unet_config_from_diffusers_unet(public) is not None) == known
