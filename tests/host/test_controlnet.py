"""Apply ControlNet Residuals against the host's ControlNetApplyAdvanced: strengths, steps, frames, regions, what is refused."""

from fractions import Fraction

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import pytest
import torch

from support.controls import nets, ours, pairs, residuals_of, run, same, svd_net, theirs  # noqa: F401  (fixtures among them)
from support.families import random_weights, relative_error
from support.oracle import CPU, ROWS, SMALL, controlnet, fill, hints, host_model, host_unet_config, prompts, run_node, sample

CASES = [("sd1", "sd1"), ("sdxl", "sdxl"), ("sd1", "sd1 adapter"), ("sdxl", "sdxl adapter"), ("sd2", "sd2"), ("svd", "sd2")]


@pytest.mark.slow
@pytest.mark.parametrize("name, net", CASES)
def test_equals_the_hosts_apply_node(pairs, nets, ours, theirs, name, net):
    conds, image = prompts(SMALL[name]), hints(1)
    same(pairs, name, ours(conds, nets(net), image), theirs(conds, nets(net), image), frames=3 if name == "svd" else 2)


@pytest.mark.parametrize("name, net", [
    ("sd1", "sd1"), *(pytest.param(*each, marks=pytest.mark.slow) for each in (("sd1", "sd1 adapter"), ("svd", "sd2"))),
])
def test_one_image_per_frame(pairs, nets, ours, theirs, name, net):
    conds, images = prompts(SMALL[name]), hints(3)
    our_conds = ours(conds, nets(net), images)
    same(pairs, name, our_conds, theirs(conds, nets(net), images), frames=3)
    one = run(pairs(name).ours, ours(conds, nets(net), images[:1]), frames=3)
    assert relative_error(run(pairs(name).ours, our_conds, frames=3), one) > 1e-3


@pytest.mark.one_host
@pytest.mark.parametrize("start, end", [
    (0.3, 0.6), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0.0, 0.5), (0.5, 1.0))),
])
@pytest.mark.parametrize("net", ["sd1", pytest.param("sd1 adapter", marks=pytest.mark.slow)])
def test_step_ranges(pairs, nets, ours, theirs, net, start, end):
    conds, image = prompts(SMALL["sd1"]), hints(2)
    same(
        pairs, "sd1", ours(conds, nets(net), image, start=start, end=end),
        theirs(conds, nets(net), image, start=start, end=end), steps=3,
    )


@pytest.mark.slow
def test_chained_nets_of_every_kind(pairs, nets, ours, theirs):
    conds, image, other = prompts(SMALL["sd1"]), hints(2), hints(2, seed=22)
    our_chain, their_chain = conds, conds
    for net, control_image, strength in (("sd1", image, 0.4), ("sd1 adapter", other, 0.8), ("sd1", other[:1], 0.3)):
        our_chain = ours(our_chain, nets(net), control_image, strength)
        their_chain = theirs(their_chain, nets(net), control_image, strength)
    same(pairs, "sd1", our_chain, their_chain)


@pytest.mark.parametrize("ours_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_chained_with_the_hosts_node(pairs, nets, ours, theirs, ours_first):
    conds, image, other = prompts(SMALL["sd1"]), hints(2), hints(2, seed=22)
    their_chain = theirs(theirs(conds, nets("sd1"), image), nets("sd1 adapter"), other)
    first, second = (ours, theirs) if ours_first else (theirs, ours)
    mixed = second(first(conds, nets("sd1"), image), nets("sd1 adapter"), other)
    same(pairs, "sd1", mixed, their_chain)


@pytest.mark.slow
@pytest.mark.one_host
def test_the_same_net_twice_with_other_images(pairs, nets, ours, theirs):
    conds, image, other = prompts(SMALL["sd1"]), hints(2), hints(2, seed=22)
    net = nets("sd1")
    same(pairs, "sd1", ours(ours(conds, net, image), net, other, 0.4), theirs(theirs(conds, net, image), net, other, 0.4))


@pytest.mark.slow
@pytest.mark.one_host
def test_on_the_positive_alone(pairs, nets, ours, theirs):
    positive, negative = prompts(SMALL["sd1"])
    image = hints(2)
    our_conds = (ours((positive, negative), nets("sd1"), image)[0], negative)
    same(pairs, "sd1", our_conds, (theirs((positive, negative), nets("sd1"), image)[0], negative))


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("size", [(8, 12), (9, 15)])
def test_other_sizes_of_latent_and_image(pairs, nets, ours, theirs, size):
    conds, image = prompts(SMALL["sd1"]), hints(1, size=100)
    same(pairs, "sd1", ours(conds, nets("sd1"), image), theirs(conds, nets("sd1"), image), size=size)


@pytest.mark.slow
def test_in_a_regional_prompt(pairs, nets, node, ours, theirs):
    """A controlled region next to an uncontrolled whole: calls of different rows and sizes within one step."""
    positive, negative = prompts(SMALL["sd1"])
    image = hints(2)

    def region(apply):
        controlled, controlled_negative = apply((positive, negative), nets("sd1"), image)
        area = run_node(node("ConditioningSetArea"), controlled, 64, 32, 0, 16, 1.0)[0]
        return run_node(node("ConditioningCombine"), positive, area)[0], controlled_negative

    same(pairs, "sd1", region(ours), region(theirs))


@pytest.mark.parametrize("net", ["sd1", "sd1 adapter"])
def test_when_the_rows_of_a_call_change_between_steps(pairs, nets, node, ours, net):
    """The negative ends halfway, so later calls have half the rows; one image for each must still be its own."""
    pair = pairs("sd1")
    conds, image = prompts(pair.config), hints(1)
    negative = run_node(node("ConditioningSetTimestepRange"), conds[1], 0.0, 0.4)[0]
    each = run(pair.ours, ours((conds[0], negative), nets(net), image.repeat(2, 1, 1, 1)), steps=3)
    assert relative_error(each, run(pair.ours, ours((conds[0], negative), nets(net), image), steps=3)) <= 1e-5


@pytest.mark.slow
def test_control_lora(pairs, ours, theirs):
    """A ControlLoRA completes itself from the UNet's own weights, ours as well as the host's."""
    pair = pairs("sd1")
    full = controlnet("sd1").control_model.state_dict()
    generator = torch.Generator().manual_seed(5)
    weights = {"lora_controlnet": torch.tensor([])}
    for name, value in full.items():
        if name.startswith(("input_hint_block", "zero_convs", "middle_block_out")):
            weights[name] = value
        elif name.endswith("to_q.weight"):
            rows, columns = value.shape
            weights[name.replace("weight", "up")] = 0.1 * torch.randn(rows, 4, generator=generator)
            weights[name.replace("weight", "down")] = 0.1 * torch.randn(4, columns, generator=generator)
    lora = comfy.controlnet.load_controlnet_state_dict(weights)
    assert isinstance(lora, comfy.controlnet.ControlLora)
    conds, image = prompts(pair.config), hints(2)
    same(pairs, "sd1", ours(conds, lora, image), theirs(conds, lora, image))


def test_strength_zero_is_bit_equal_to_no_control(pairs, nets, ours):
    pair = pairs("sd1")
    conds = prompts(pair.config)
    assert torch.equal(run(pair.ours, ours(conds, nets("sd1"), hints(2), 0.0)), run(pair.ours, conds))


def test_strength_scales(pairs, nets, ours, theirs):
    conds, image = prompts(SMALL["sd1"]), hints(1)
    same(pairs, "sd1", ours(conds, nets("sd1"), image, 1.9), theirs(conds, nets("sd1"), image, 1.9))


# frames and regions


def one_call(pair, conds, frames, size=(8, 8)):
    """The denoised latent after one step without guidance: each image depends on its own rows alone."""
    return sample(pair.ours, *conds, frames=frames, size=size, steps=1, cfg=1.0)


@pytest.mark.parametrize("net", ["sd1", "sd1 adapter"])
def test_frame_strengths_of_zero_leave_those_images_alone(pairs, nets, ours, net):
    pair = pairs("sd1")
    conds, images = prompts(pair.config), hints(5)
    result = one_call(pair, ours(conds, nets(net), images, frame_strengths="0.5:0, 0.75:1"), 5)
    full, plain = one_call(pair, ours(conds, nets(net), images), 5), one_call(pair, conds, 5)
    assert relative_error(result[:3], plain[:3]) <= 1e-6
    assert relative_error(result[3:], full[3:]) <= 1e-6
    assert relative_error(full[:3], plain[:3]) > 1e-3


def test_frame_strengths_equal_a_strength_of_each_image(pairs, nets, ours):
    pair = pairs("sd1")
    conds, images = prompts(pair.config), hints(3)
    result = one_call(pair, ours(conds, nets("sd1"), images, 0.8, frame_strengths="0:0.5, 1:1.5"), 3)
    for frame, factor in enumerate((0.5, 1.0, 1.5)):
        expected = one_call(pair, ours(conds, nets("sd1"), images, 0.8 * factor), 3)
        assert relative_error(result[frame], expected[frame]) <= 1e-5


@pytest.mark.slow
@pytest.mark.one_host
def test_frame_strengths_on_video_with_guidance(pairs, nets, ours):
    """Half the clip at zero: the residuals repeat per condition, the network may still spread them over time."""
    pair = pairs("svd")
    conds = prompts(pair.config)
    zero = run(pair.ours, ours(conds, nets("sd2"), hints(4), frame_strengths="0:0"), frames=4)
    half = run(pair.ours, ours(conds, nets("sd2"), hints(4), frame_strengths="0.4:0, 0.6:1"), frames=4)
    assert relative_error(zero, run(pair.ours, conds, frames=4)) <= 1e-5
    assert relative_error(half, zero) > 1e-3 and torch.isfinite(half).all()


@pytest.mark.parametrize("curve", ["", "0:x", "1:1, 0:1", "0:inf"])
def test_bad_frame_strengths_are_refused(nets, ours, curve):
    with pytest.raises(ValueError, match="frame_strengths"):
        ours(prompts(SMALL["sd1"]), nets("sd1"), hints(1), frame_strengths=curve)


@pytest.mark.parametrize("net", ["sd1", "sd1 adapter"])
@pytest.mark.parametrize("per_frame", [False, True])
def test_the_mask_weighs_every_residual(pairs, nets, ours, net, per_frame):
    pair = pairs("sd1")
    mask = torch.zeros(3 if per_frame else 1, 64, 64)
    mask[:, :, :32] = 1
    if per_frame:
        mask[2] = 0
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    plain = residuals_of(ours(prompts(pair.config), nets(net), hints(3))[0][0][1]["control"], pair, x)
    masked = residuals_of(ours(prompts(pair.config), nets(net), hints(3), mask=mask)[0][0][1]["control"], pair, x)
    seen = 0
    for place in plain:
        for whole, part in zip(plain[place], masked[place], strict=True):
            if whole is None or whole.shape[-1] < 2:
                continue
            seen += 1
            middle = whole.shape[-1] // 2
            assert torch.equal(part[..., middle:], torch.zeros_like(part[..., middle:]))
            kept = [0, 1, 3, 4] if per_frame else list(range(6))
            assert relative_error(part[kept][..., : max(1, middle - 1)], whole[kept][..., : max(1, middle - 1)]) <= 1e-6
            assert not per_frame or part[[2, 5]].abs().max() == 0
    assert seen >= 3


@pytest.mark.slow
@pytest.mark.one_host
def test_a_full_mask_changes_nothing_and_an_empty_one_is_no_control(pairs, nets, ours):
    pair = pairs("sd1")
    conds = prompts(pair.config)
    full = run(pair.ours, ours(conds, nets("sd1"), hints(2), mask=torch.ones(1, 64, 64)))
    assert relative_error(full, run(pair.ours, ours(conds, nets("sd1"), hints(2)))) <= 1e-6
    empty = run(pair.ours, ours(conds, nets("sd1"), hints(2), mask=torch.zeros(1, 64, 64)))
    assert relative_error(empty, run(pair.ours, conds)) <= 1e-6


def test_nothing_is_changed_in_place(pairs, nets, ours):
    """Images, mask, prompts, the net's own state and the residuals of an earlier net stay as they were."""
    pair = pairs("sd1")
    conds, images, mask = prompts(pair.config), hints(2), torch.rand(1, 64, 64)
    before = [images.clone(), mask.clone(), conds[0][0][0].clone()]
    weights = {k: v.clone() for k, v in nets("sd1").control_model.state_dict().items()}
    chain = ours(ours(conds, nets("sd1 adapter"), images), nets("sd1"), images, mask=mask, frame_strengths="0:0.5, 1:1")
    first = run(pair.ours, chain)
    assert torch.equal(run(pair.ours, chain), first), "a second run of the same conditioning differs"
    assert all(torch.equal(a, b) for a, b in zip(before, [images, mask, conds[0][0][0]], strict=True))
    assert all(torch.equal(v, weights[k]) for k, v in nets("sd1").control_model.state_dict().items())
    assert "control" not in conds[0][0][1] and nets("sd1").cond_hint_original is None
    assert nets("sd1").previous_controlnet is None


# errors


@pytest.mark.slow
@pytest.mark.one_host
def test_a_net_of_another_family_is_refused(pairs, nets, ours):
    for name, net, words in (
        ("svd", "sd1", "for Stable Diffusion 1, the model is Stable Video Diffusion. Load a"),
        ("sd2", "sd1", "for Stable Diffusion 1, the model is Stable Diffusion 2. Load a"),
        ("sdxl", "sd1", "for Stable Diffusion 1, the model is SDXL. Load a"),
        ("sd1", "sdxl", "for SDXL, the model is Stable Diffusion 1. Load a"),
    ):
        with pytest.raises(ValueError, match="^Apply ControlNet Residuals: this ControlNet is ") as error:
            run(pairs(name).ours, ours(prompts(SMALL[name]), nets(net), hints(1)))
        assert words in str(error.value), str(error.value)


@pytest.mark.one_host
@pytest.mark.parametrize("name, net, words", [
    ("sd1", "sdxl adapter", "a T2I-Adapter for SDXL, the model is Stable Diffusion 1"),
    ("sdxl", "sd1 adapter", "a T2I-Adapter for Stable Diffusion 1, the model is SDXL"),
    pytest.param("svd", "sd1 adapter", "a T2I-Adapter for Stable Diffusion 1, the model is Stable Video Diffusion",
                 marks=pytest.mark.slow),
])
def test_an_adapter_of_another_family_is_refused(pairs, nets, ours, name, net, words):
    with pytest.raises(ValueError, match=f"Apply ControlNet Residuals: this ControlNet is {words}"):
        run(pairs(name).ours, ours(prompts(SMALL[name]), nets(net), hints(1)))


@pytest.mark.parametrize("name", ["svd", "sdxl"])
def test_a_control_lora_of_another_family_is_refused(pairs, ours, name):
    """Of video models also where the context is as wide as SD 2's: the host cannot complete it from their UNet."""
    rank = {"input_blocks.1.1.transformer_blocks.0.attn2.to_k.down": torch.zeros(4, 1024)}
    lora = comfy.controlnet.ControlLora({"lora_controlnet": torch.tensor([]), **rank})
    with pytest.raises(ValueError, match="Apply ControlNet Residuals: this ControlNet is .*, the model is"):
        run(pairs(name).ours, ours(prompts(SMALL[name]), lora, hints(1)))


@pytest.mark.parametrize("name, model", [("sdxl", "SDXL"), ("sd2", "Stable Diffusion 2")])
def test_a_net_of_video_is_refused_by_image_models(pairs, svd_net, ours, name, model):
    with pytest.raises(ValueError, match=f"this ControlNet is for Stable Video Diffusion, the model is {model}"):
        run(pairs(name).ours, ours(prompts(SMALL[name]), svd_net, hints(1)))


def test_a_union_net_of_another_family_is_refused(pairs, node, ours):
    config = host_unet_config(random_weights(SMALL["sdxl"]), ROWS["sdxl"], SMALL["sdxl"].head_channels)
    config.pop("out_channels")
    net = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, union_controlnet_num_control_type=6, operations=comfy.ops.disable_weight_init
    )
    union = comfy.controlnet.ControlNet(fill(net, 14), load_device=CPU)
    depth = run_node(node("SetUnionControlNetType"), union, "depth")[0]
    with pytest.raises(ValueError, match="this ControlNet is for SDXL, the model is Stable Video Diffusion"):
        run(pairs("svd").ours, ours(prompts(SMALL["svd"]), depth, hints(1)))


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("source", ["images", "masks"])
def test_of_fewer_images_than_frames_the_last_one_stays(pairs, nets, ours, source):
    pair, fewer, each = pairs("svd"), [0, 1], [0, 1, 1, 1]
    images, masks = hints(2), torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(8))

    def made(of):
        image, mask = (images[of], None) if source == "images" else (images[:1], masks[of])
        return run(pair.ours, ours(prompts(pair.config), nets("sd2"), image, mask=mask), frames=4)

    assert torch.equal(made(fewer), made(each))


@pytest.mark.one_host
@pytest.mark.parametrize("name, net", [
    *(pytest.param(*each, marks=pytest.mark.slow) for each in (("svd", "sd2"), ("sd1", "sd1"))), ("sd1", "sd1 adapter"),
])
@pytest.mark.parametrize("what", ["control images", "masks"])
def test_of_more_images_than_frames_the_first_are_used_and_logged_once(pairs, nets, ours, caplog, name, net, what):
    pair, images, masks = pairs(name), hints(5), torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(8))

    def made(count):
        image, mask = (images[:count], None) if what == "control images" else (images[:1], masks[:count])
        return run(pair.ours, ours(prompts(pair.config), nets(net), image, mask=mask), frames=3, steps=3)

    expected = made(3)
    assert "the first" not in caplog.text
    assert torch.equal(made(5), expected)
    [line] = [record.message for record in caplog.records if "the first" in record.message]
    assert line == f"Apply ControlNet Residuals: found 5 {what} for 3 frames; the first 3 are used."


def test_control_images_may_be_a_video(pairs, nets, ours):
    from comfy_api.latest import InputImpl, Types

    pair, images = pairs("svd"), hints(3)
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(6)))
    results = [run(pair.ours, ours(prompts(pair.config), nets("sd2"), given), frames=3) for given in (images, video)]
    assert torch.equal(*results)


@pytest.mark.parametrize("name, value, found", [
    ("strength", float("nan"), "NaN"), ("start_percent", float("nan"), "NaN"), ("end_percent", float("inf"), "infinite"),
])
def test_a_number_that_is_none_is_refused(node, nets, name, value, found):
    with pytest.raises(ValueError, match=f"^Apply ControlNet Residuals: {name} is {found}, expected a finite number"):
        run_node(
            node("TemporalUNetApplyControlNetResiduals"), *prompts(SMALL["sd1"]), control_net=nets("sd1"), image=hints(1),
            **{name: value},
        )


def test_a_control_that_ends_before_it_starts_is_refused(node, nets):
    with pytest.raises(ValueError, match="^Apply ControlNet Residuals: start_percent 0.8 lies after end_percent 0.2"):
        run_node(
            node("TemporalUNetApplyControlNetResiduals"), *prompts(SMALL["sd1"]), control_net=nets("sd1"), image=hints(1),
            start_percent=0.8, end_percent=0.2,
        )


@pytest.mark.parametrize("given, found", [({}, "nothing"), ({"image": hints(1)}, "image"), ({"net": True}, "control_net")])
def test_a_source_that_is_not_whole_is_an_error(nets, node, given, found):
    sources = {"control_net": nets("sd1") if given.get("net") else None, "image": given.get("image")}
    with pytest.raises(ValueError, match=f"found {found}, expected either control_net and image, or residuals"):
        run_node(node("TemporalUNetApplyControlNetResiduals"), *prompts(SMALL["sd1"]), **sources)


def test_after_an_error_the_next_run_is_right(pairs, nets, ours):
    pair = pairs("svd")
    conds = ours(prompts(pair.config), nets("sd2"), hints(1))
    before = run(pair.ours, conds, frames=3)
    with pytest.raises(ValueError):
        run(pair.ours, ours(conds, nets("sd1"), hints(1)), frames=3)
    assert torch.equal(run(pair.ours, conds, frames=3), before)


@pytest.mark.slow
def test_the_hosts_model_takes_our_node_too(nets, ours, theirs):
    model = host_model(random_weights(SMALL["sd1"]), ROWS["sd1"])
    conds, image = prompts(SMALL["sd1"]), hints(2)
    result = run(model, ours(conds, nets("sd1"), image))
    assert relative_error(result, run(model, theirs(conds, nets("sd1"), image))) <= 1e-5


@pytest.mark.skipif(not hasattr(comfy.controlnet.ControlBase, "deepclone_multigpu"), reason="0.30.0 has multi-GPU clones")
@pytest.mark.parametrize("name, net", [("sd1", "sd1"), ("svd", "svd")])
def test_a_multigpu_clone_gives_the_same_residuals(pairs, nets, svd_net, ours, name, net):
    pair, net = pairs(name), svd_net if net == "svd" else nets(net)
    control = ours(prompts(pair.config), net, hints(3), frame_strengths="0:0.5, 1:1")[0][0][1]["control"]
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    clone = control.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    assert control.get_instance_for_device(torch.device("cpu")) is clone
    (own,) = clone.get_models_only_self()
    theirs = {p.data_ptr() for p in net.control_model.parameters()}
    assert not theirs & {p.data_ptr() for p in own.model.parameters()}
    ours_, theirs_ = residuals_of(control, pair, x), residuals_of(clone, pair, x)
    assert all(torch.equal(a, b) for place in ours_ for a, b in zip(ours_[place], theirs_[place], strict=True))


# SVD's net


@pytest.mark.slow
def test_svds_net_on_video(pairs, svd_net, ours, theirs):
    """One net used twice, with other images, next to the host's node; the strength doubles the residuals."""
    pair = pairs("svd")
    conds, images, other = prompts(pair.config), hints(3), hints(3, seed=22)
    twice = ours(ours(conds, svd_net, images), svd_net, other, 0.4)
    result = run(pair.ours, twice, frames=3)
    expected = run(pair.ours, theirs(theirs(conds, svd_net, images), svd_net, other, 0.4), frames=3)
    assert relative_error(result, expected) <= 1e-5
    assert relative_error(result, run(pair.ours, ours(conds, svd_net, images), frames=3)) > 1e-3
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    one, two = (residuals_of(ours(conds, svd_net, images, s)[0][0][1]["control"], pair, x) for s in (1.0, 2.0))
    assert all(torch.equal(2 * a, b) for place in one for a, b in zip(one[place], two[place], strict=True))


def test_frames_of_strength_zero_have_residuals_of_exactly_zero(pairs, svd_net, ours):
    pair = pairs("svd")
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    conds = ours(prompts(pair.config), svd_net, hints(4), frame_strengths="0.4:0, 0.6:1")
    given = residuals_of(conds[0][0][1]["control"], pair, x)
    for residual in given["output"] + given["middle"]:
        assert residual[[0, 1, 4, 5]].abs().max() == 0 < residual[[2, 3, 6, 7]].abs().amin(0).max()
