"""What other packs do to a MODEL or ask of its network: as on the host's own."""

from functools import partial

import pytest
import torch
from comfy.ldm.modules import attention
from comfy.ldm.modules.diffusionmodules import openaimodel

from support.families import TINY, inputs, random_weights, relative_error
from support.oracle import CPU, ROWS, SMALL, Pair, controlnet, hints, host_unet, prompts, run_node, sample, t2i_adapter
from unet import UNetModel

FIRST = "input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def sd1(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("packs"), "sd1")


def widened(model, concat_channels=4):
    """The MODEL as IC-Light, LayerDiffuse and PIA change it: a patch widens the first convolution, a wrapper gives c_concat."""
    model, generator = model.clone(), torch.Generator().manual_seed(3)
    wide = 0.1 * torch.randn(SMALL["sd1"].model_channels, 8, 3, 3, generator=generator)
    model.add_patches({f"diffusion_model.{FIRST}": ("diff", [wide, {"pad_weight": True}])})
    extra = torch.randn(1, concat_channels, 8, 8, generator=generator)

    def with_extra(apply_model, call):
        rows = call["input"].shape[0]
        return apply_model(call["input"], call["timestep"], **{**call["c"], "c_concat": extra.repeat(rows, 1, 1, 1)})

    model.set_model_unet_function_wrapper(with_extra)
    return model


@pytest.mark.slow
def test_a_first_convolution_widened_by_a_patch_equals_the_hosts(sd1):
    ours, host = (sample(widened(model), *prompts(SMALL["sd1"])) for model in sd1)
    assert relative_error(ours, host) <= 1e-4
    assert relative_error(ours, sample(sd1.ours, *prompts(SMALL["sd1"]))) > 1e-2


def test_a_first_convolution_widened_as_it_is_cast_equals_one_widened_in_place(sd1):
    """Low-VRAM mode: the weight on the module is as narrow as ever, and the patch is applied at each call."""
    model = widened(sd1.ours)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    call = {
        "c_crossattn": prompts(SMALL["sd1"])[0][0][0].repeat(2, 1, 1), "c_concat": x.flip(0),
        "transformer_options": {"cond_or_uncond": [0]},
    }
    results = []
    for loading in ({"lowvram_model_memory": 1}, {"full_load": True}):
        model.detach()
        model.load(CPU, **loading)
        results.append(model.model.apply_model(x, torch.full((2,), 0.7), **call))
        if "full_load" not in loading:
            assert model.model.diffusion_model.input_blocks[0][0].weight.shape[1] == 4
    model.detach()
    assert relative_error(*results) <= 1e-5


def test_a_widened_first_convolution_says_how_many_channels_it_takes(sd1):
    with pytest.raises(ValueError, match="The UNet takes 8 input channels .*, found 10"):
        sample(widened(sd1.ours, concat_channels=6), *prompts(SMALL["sd1"]))


@pytest.mark.parametrize("name", ["sd1", "unclip_l", "x4_upscaler", pytest.param("svd", marks=pytest.mark.slow)])
def test_packs_that_ask_whether_there_is_a_label_embedding_get_the_hosts_answer(name):
    host = host_unet(random_weights(TINY[name]), ROWS[name])
    assert hasattr(UNetModel(TINY[name], device="meta"), "label_emb") == hasattr(host, "label_emb")


def walk(network, call, options, frames, **video):
    """A network's prediction as packs that cache or skip blocks compute it, with the host's function for its blocks."""
    emb = network.time_embed(openaimodel.timestep_embedding(call["timesteps"], network.model_channels))
    emb = emb if network.num_classes is None else emb + network.label_emb(call["y"])
    more = {"num_video_frames": frames, **video}
    h, skips = call["x"], []
    options["transformer_index"] = 0
    for index, block in enumerate(network.input_blocks):
        options["block"] = ("input", index)
        h = openaimodel.forward_timestep_embed(block, h, emb, call["context"], options, **more)
        skips.append(h)
    options["block"] = ("middle", 0)
    h = network.middle_block(h, emb, call["context"], options, **more)  # a block runs itself, too
    for index, block in enumerate(network.output_blocks):
        options["block"] = ("output", index)
        h = torch.cat([h, skips.pop()], dim=1)
        size = skips[-1].shape if skips else None
        h = openaimodel.forward_timestep_embed(block, h, emb, call["context"], options, size, **more)
    return network.out(h)


def recorded(log):
    """Options with a patch of the first attention in each transformer, which notes the marks that it is given."""
    marks = ("block", "block_index", "transformer_index", "activations_shape", "n_heads", "dim_head")

    def patch(q, k, v, extra):
        log.append([extra[mark] for mark in marks])
        return q, k * 1.1, v * 0.9

    return {"patches": {"attn1_patch": [patch]}, "cond_or_uncond": [0, 1]}


@pytest.mark.parametrize("name", ["sd1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "svd"))])
def test_a_walk_over_the_blocks_equals_the_network_and_the_walk_over_the_hosts(pack, tmp_path, name):
    pair = Pair(pack, tmp_path, name)
    frames = 3 if pair.config.temporal else 1
    call = inputs(pair.config, frames=frames, batch=2, size=(9, 15))
    video = {}
    if pair.config.temporal:
        still = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        video = {"image_only_indicator": still, "time_context": torch.randn(6, 1, 1024)}
    ours, host = (patcher.model.diffusion_model for patcher in pair)
    walked, expected = [], []
    made = walk(ours, call, recorded(walked), frames, **video)
    assert relative_error(made, walk(host, call, recorded(expected), frames, **video)) <= 1e-5
    assert walked == expected and len({tuple(marks[:3]) for marks in walked}) > 3
    more = {"num_video_frames": frames} | video
    own = ours(call["x"], call["timesteps"], call["context"], call.get("y"), transformer_options=recorded([]), **more)
    assert relative_error(made, own) <= 1e-6


@pytest.mark.parametrize("name", ["sd1", pytest.param("svd", marks=pytest.mark.slow)])
def test_layers_are_of_the_classes_that_packs_know_from_the_host(pack, tmp_path, name):
    ours, host = (patcher.model.diffusion_model for patcher in Pair(pack, tmp_path, name))
    kinds = (
        openaimodel.TimestepBlock, openaimodel.ResBlock, openaimodel.VideoResBlock, openaimodel.Upsample, openaimodel.Downsample,
        openaimodel.TimestepEmbedSequential, attention.SpatialTransformer, attention.SpatialVideoTransformer, torch.nn.Conv2d,
    )

    def kinds_of(network):
        blocks = (*network.input_blocks, network.middle_block, *network.output_blocks)
        return [[isinstance(layer, kind) for kind in kinds] for block in blocks for layer in (block, *block)]

    assert kinds_of(ours) == kinds_of(host)


@pytest.mark.parametrize("name", ["sd1", pytest.param("svd", marks=pytest.mark.slow)])
def test_layers_tell_packs_the_sizes_and_options_that_the_hosts_layers_tell(pack, tmp_path, name):
    """Numbers, flags and Nones, which patches of whole layers read (RAUNet and others)."""
    ours, host = (patcher.model.diffusion_model for patcher in Pair(pack, tmp_path, name))

    def layers_of(network):
        return [layer for block in (*network.input_blocks, network.middle_block, *network.output_blocks) for layer in block]

    for own, theirs in zip(layers_of(ours), layers_of(host), strict=True):
        plain = {key: value for key, value in vars(theirs).items() if isinstance(value, (int, str, type(None))) and key[0] != "_"}
        plain.pop("training")
        assert {key: getattr(own, key, "missing") for key in plain} == plain, type(own).__name__


class Scaled(torch.nn.Module):
    """A layer of another pack, which is called with activations alone."""

    def __init__(self, inner=None, by=1.5):
        super().__init__()
        self.inner, self.by = inner or torch.nn.Identity(), by

    def forward(self, x):
        return self.inner(x) * self.by


@pytest.mark.slow
def test_layers_that_packs_replace_or_insert_run_as_in_the_hosts_network(sd1):
    def changed(model):
        model = model.clone()
        blocks = "diffusion_model.input_blocks"
        model.add_object_patch(f"{blocks}.0.0", Scaled(model.get_model_object(f"{blocks}.0.0")))
        block = model.get_model_object(f"{blocks}.1")
        model.add_object_patch(f"{blocks}.1", type(block)(*block, Scaled(by=0.7)))
        return model

    ours, host = (sample(changed(model), *prompts(SMALL["sd1"])) for model in sd1)
    assert relative_error(ours, host) <= 1e-4
    assert relative_error(ours, sample(sd1.ours, *prompts(SMALL["sd1"]))) > 1e-2


@pytest.mark.slow
def test_a_layer_whose_forward_a_pack_replaced_is_called_with_the_hosts_arguments(pack, tmp_path):
    """As RAUNet: the forward of Downsample and Upsample, through the object patch that restores it."""
    def changed(model):
        def half(x):
            return down.op(x) * 0.5

        def quick(x, output_shape=None):
            return up.conv(torch.nn.functional.interpolate(x, output_shape[2:4], mode="bilinear"))

        def louder(x, emb, before):
            return before(x, emb) * 1.2

        model = model.clone()
        network, down, up = model.model.diffusion_model, *ends_of(model)
        for name, layer in network.named_modules():
            if layer is down or layer is up:
                model.add_object_patch(f"diffusion_model.{name}.forward", half if layer is down else quick)
        first = network.input_blocks[1][0]
        model.add_object_patch("diffusion_model.input_blocks.1.0.forward", partial(louder, before=first.forward))
        return sample(model, *prompts(SMALL["sd1"]))

    def ends_of(model):
        layers = list(model.model.diffusion_model.modules())
        return (next(x for x in layers if isinstance(x, kind)) for kind in (openaimodel.Downsample, openaimodel.Upsample))

    pair = Pair(pack, tmp_path, "sd1")
    plain = sample(pair.ours, *prompts(SMALL["sd1"]))
    ours, host = map(changed, pair)
    assert relative_error(ours, host) <= 1e-4 and relative_error(ours, plain) > 1e-2
    assert torch.equal(sample(pair.ours, *prompts(SMALL["sd1"])), plain)


def resized(h, control, place):
    """The host's `apply_control` as RAUNet puts its own there: a residual gets the size of the activations, which it writes to."""
    waiting = [] if control is None else control.get(place, [])
    residual = waiting.pop() if waiting else None
    if residual is not None:
        h += torch.nn.functional.interpolate(residual, h.shape[2:], mode="bilinear")
    return h


@pytest.mark.slow
def test_a_pack_that_replaces_the_hosts_function_for_residuals_adds_them_its_own_way(sd1, node, monkeypatch):
    """With the middle of the network at half its size, where residuals do not fit."""
    def halved(model):
        model, place = model.clone(), "diffusion_model.input_blocks.3.0"
        model.add_object_patch(place, torch.nn.Sequential(model.get_model_object(place), torch.nn.AvgPool2d(2)))
        return model

    conds = prompts(SMALL["sd1"])
    for net in (controlnet("sd1"), t2i_adapter("sd1")):
        conds = run_node(node("ControlNetApplyAdvanced"), *conds, net, hints(1, size=128), 0.7, 0.0, 1.0)
    monkeypatch.setattr(openaimodel, "apply_control", resized)
    ours, host = (halved(model) for model in sd1)
    result, plain = (sample(ours, *shown, size=(16, 16), steps=1) for shown in (conds, prompts(SMALL["sd1"])))
    assert relative_error(result, sample(host, *conds, size=(16, 16), steps=1)) <= 1e-4
    assert relative_error(result, plain) > 1e-3
    cached = run_node(node("TemporalUNetFeatureCache"), ours, 1e-6)[0]
    assert relative_error(sample(cached, *conds, size=(16, 16), steps=1), result) <= 1e-5
