"""Apply ControlNet Residuals against the host's ControlNetApplyAdvanced, and against windows worked out by hand."""

import comfy.controlnet
import comfy.patcher_extension
import pytest
import torch
from families import random_weights, relative_error
from oracle import ROWS, SMALL, Pair, controlnet, hints, host_model, prompts, run_node, sample, t2i_adapter

BATCH = 2
CLIP = 7


@pytest.fixture(scope="module")
def pairs(pack, tmp_path_factory):
    """Our MODEL and the host's, made when they are first asked for."""
    folder, made = tmp_path_factory.mktemp("control"), {}
    return lambda name: made.setdefault(name, None) or made.__setitem__(name, Pair(pack, folder, name)) or made[name]


@pytest.fixture(scope="module")
def nets():
    """The host's CONTROL_NETs for the miniatures."""
    made = {
        "sd1": controlnet("sd1"), "sdxl": controlnet("sdxl"), "sd2": controlnet("sd2"),
        "sd1 adapter": t2i_adapter("sd1"), "sdxl adapter": t2i_adapter("sdxl"),
    }
    return made.__getitem__


@pytest.fixture
def ours(node):
    """Our node on a pair of prompts, or on what an earlier node made of them."""

    def apply(conds, net, image, strength=0.7, start=0.0, end=1.0, **options):
        return run_node(node("TemporalUNetApplyControlNetResiduals"), *conds, net, image, strength, start, end, **options)

    return apply


@pytest.fixture
def theirs(node):
    def apply(conds, net, image, strength=0.7, start=0.0, end=1.0):
        return run_node(node("ControlNetApplyAdvanced"), *conds, net, image, strength, start, end)

    return apply


def run(model, conds, frames=BATCH, **options):
    return sample(model, *conds, frames=frames, **options)


def same(pairs, name, our_conds, their_conds, **options):
    """Asserts that the control acts, that both nodes give the same on our MODEL, and that the host's MODEL agrees."""
    pair = pairs(name)
    result = run(pair.ours, our_conds, **options)
    assert relative_error(result, run(pair.ours, their_conds, **options)) <= 1e-5
    assert relative_error(result, run(pair.host, their_conds, **options)) <= 1e-3
    assert relative_error(result, run(pair.ours, prompts(pair.config), **options)) > 1e-4, "the control did nothing"


CASES = [("sd1", "sd1"), ("sdxl", "sdxl"), ("sd1", "sd1 adapter"), ("sdxl", "sdxl adapter"), ("sd2", "sd2"), ("svd", "sd2")]


@pytest.mark.parametrize("name, net", CASES)
def test_equals_the_hosts_apply_node(pairs, nets, ours, theirs, name, net):
    conds, image = prompts(SMALL[name]), hints(1)
    same(pairs, name, ours(conds, nets(net), image), theirs(conds, nets(net), image), frames=3 if name == "svd" else 2)


@pytest.mark.parametrize("name, net", [("sd1", "sd1"), ("sd1", "sd1 adapter"), ("svd", "sd2")])
def test_one_image_per_frame(pairs, nets, ours, theirs, name, net):
    conds, images = prompts(SMALL[name]), hints(3)
    our_conds = ours(conds, nets(net), images)
    same(pairs, name, our_conds, theirs(conds, nets(net), images), frames=3)
    one = run(pairs(name).ours, ours(conds, nets(net), images[:1]), frames=3)
    assert relative_error(run(pairs(name).ours, our_conds, frames=3), one) > 1e-3


@pytest.mark.parametrize("start, end", [(0.0, 0.5), (0.5, 1.0), (0.3, 0.6)])
@pytest.mark.parametrize("net", ["sd1", "sd1 adapter"])
def test_step_ranges(pairs, nets, ours, theirs, net, start, end):
    conds, image = prompts(SMALL["sd1"]), hints(2)
    same(
        pairs, "sd1", ours(conds, nets(net), image, start=start, end=end),
        theirs(conds, nets(net), image, start=start, end=end), steps=3,
    )


def test_chained_nets_of_every_kind(pairs, nets, ours, theirs):
    conds, image, other = prompts(SMALL["sd1"]), hints(2), hints(2, seed=22)
    our_chain, their_chain = conds, conds
    for net, picture, strength in (("sd1", image, 0.4), ("sd1 adapter", other, 0.8), ("sd1", other[:1], 0.3)):
        our_chain = ours(our_chain, nets(net), picture, strength)
        their_chain = theirs(their_chain, nets(net), picture, strength)
    same(pairs, "sd1", our_chain, their_chain)


@pytest.mark.parametrize("ours_first", [True, False])
def test_chained_with_the_hosts_node(pairs, nets, ours, theirs, ours_first):
    conds, image, other = prompts(SMALL["sd1"]), hints(2), hints(2, seed=22)
    their_chain = theirs(theirs(conds, nets("sd1"), image), nets("sd1 adapter"), other)
    first, second = (ours, theirs) if ours_first else (theirs, ours)
    mixed = second(first(conds, nets("sd1"), image), nets("sd1 adapter"), other)
    same(pairs, "sd1", mixed, their_chain)


def test_the_same_net_twice_with_other_images(pairs, nets, ours, theirs):
    conds, image, other = prompts(SMALL["sd1"]), hints(2), hints(2, seed=22)
    net = nets("sd1")
    same(pairs, "sd1", ours(ours(conds, net, image), net, other, 0.4), theirs(theirs(conds, net, image), net, other, 0.4))


def test_on_the_positive_alone(pairs, nets, ours, theirs):
    positive, negative = prompts(SMALL["sd1"])
    image = hints(2)
    our_conds = (ours((positive, negative), nets("sd1"), image)[0], negative)
    same(pairs, "sd1", our_conds, (theirs((positive, negative), nets("sd1"), image)[0], negative))


@pytest.mark.parametrize("size", [(8, 12), (9, 15)])
def test_other_sizes_of_latent_and_image(pairs, nets, ours, theirs, size):
    conds, image = prompts(SMALL["sd1"]), hints(1, size=100)
    same(pairs, "sd1", ours(conds, nets("sd1"), image), theirs(conds, nets("sd1"), image), size=size)


def test_in_a_regional_prompt(pairs, nets, node, ours, theirs):
    """A controlled region beside an uncontrolled whole: calls of different rows and sizes within one step."""
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


def residuals_of(control, pair, x, transformer_options=None, batched=2):
    """What a control of a conditioning hands to the network for x [batched * frames, 4, h, w]."""
    model = pair.ours.model
    control.pre_run(model, model.model_sampling.percent_to_sigma)
    cond = {"c_crossattn": torch.randn(x.shape[0], 7, pair.config.context_dim, generator=torch.Generator().manual_seed(2))}
    sigma = model.model_sampling.sigma_max.reshape(1).repeat(x.shape[0]) * 0.5
    out = control.get_control(x, sigma, cond, batched, transformer_options or {"cond_or_uncond": [0, 1]})
    out = {place: [None if r is None else r.clone() for r in rs] for place, rs in out.items()}
    control.cleanup()
    return out


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
        for whole, part in zip(plain[place], masked[place]):
            if whole is None or whole.shape[-1] < 2:
                continue
            seen += 1
            middle = whole.shape[-1] // 2
            assert torch.equal(part[..., middle:], torch.zeros_like(part[..., middle:]))
            kept = [0, 1, 3, 4] if per_frame else list(range(6))
            assert relative_error(part[kept][..., : max(1, middle - 1)], whole[kept][..., : max(1, middle - 1)]) <= 1e-6
            assert not per_frame or part[[2, 5]].abs().max() == 0
    assert seen >= 3


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
    assert all(torch.equal(a, b) for a, b in zip(before, [images, mask, conds[0][0][0]]))
    assert all(torch.equal(v, weights[k]) for k, v in nets("sd1").control_model.state_dict().items())
    assert "control" not in conds[0][0][1] and nets("sd1").cond_hint_original is None
    assert nets("sd1").previous_controlnet is None


# windows


def windows_of(model, node, length, overlap):
    return run_node(node("ContextWindowsManual"), model, length, overlap, "standard_static", 1, False, "pyramid", 0, False)[0]


def pyramid(length):
    return torch.tensor([min(i + 1, length - i) for i in range(length)], dtype=torch.float32)


def by_hand(model, conds_for, frames, length, overlap, anchor):
    """One step of each window on its own, put together with the pyramid's weights.

    `anchor`: the host prepends the frame before the window, whose result is dropped.
    """
    total = torch.zeros(frames, 4, 8, 8)
    weight = torch.zeros(frames, 1, 1, 1)
    start = 0
    while True:
        start = min(start, frames - length)
        window = list(range(start, start + length))
        shown = [start - 1, *window] if anchor and start > 0 else window
        latent = {"samples": torch.zeros(len(shown), 4, 8, 8), "batch_index": shown}
        part = sample(model, *conds_for(shown), steps=1, cfg=2.0, **latent)[len(shown) - length:]
        total[window] += part * pyramid(length).reshape(-1, 1, 1, 1)
        weight[window] += pyramid(length).reshape(-1, 1, 1, 1)
        if start + length >= frames:
            return total / weight
        start += length - overlap


def anchored():
    import inspect

    import comfy.context_windows

    return "causal_window_fix" in inspect.signature(comfy.context_windows.IndexListContextHandler).parameters


@pytest.mark.parametrize("name, net", [("svd", "sd2"), ("sd1", "sd1"), ("sd1", "sd1 adapter")])
@pytest.mark.parametrize("length, overlap", [(4, 1), (3, 1)])
def test_residuals_follow_the_frames_of_context_windows(pairs, nets, node, ours, theirs, name, net, length, overlap):
    pair = pairs(name)
    conds, images = prompts(pair.config), hints(CLIP)
    expected = by_hand(
        pair.ours, lambda shown: theirs(conds, nets(net), images[shown]), CLIP, length, overlap, anchored()
    )
    latent = {"samples": torch.zeros(CLIP, 4, 8, 8), "batch_index": list(range(CLIP)), "steps": 1, "cfg": 2.0}
    windowed = windows_of(pair.ours, node, length, overlap)
    assert relative_error(sample(windowed, *ours(conds, nets(net), images), **latent), expected) <= 1e-4
    if net != "sd1 adapter":  # whose residuals keep the rows of the first window
        theirs_in_windows = sample(windowed, *theirs(conds, nets(net), images), **latent)
        assert relative_error(theirs_in_windows, expected) > 1e-3, "the host follows the frames by itself now"


def test_frame_strengths_and_masks_follow_the_frames_of_windows(pairs, nets, node, ours):
    pair = pairs("svd")
    conds, images = prompts(pair.config), hints(CLIP)
    masks = torch.rand(CLIP, 64, 64, generator=torch.Generator().manual_seed(8))
    strengths = torch.linspace(0, 1, CLIP)

    def conds_for(shown):
        """Without windows a clip of the shown frames: the curve's values go into the masks."""
        return ours(conds, nets("sd2"), images[shown], mask=masks[shown] * strengths[shown][:, None, None])

    expected = by_hand(pair.ours, conds_for, CLIP, 4, 1, anchored())
    controlled = ours(conds, nets("sd2"), images, mask=masks, frame_strengths="0:0, 1:1")
    result = sample(
        windows_of(pair.ours, node, 4, 1), *controlled, samples=torch.zeros(CLIP, 4, 8, 8),
        batch_index=list(range(CLIP)), steps=1, cfg=2.0,
    )
    assert relative_error(result, expected) <= 1e-4


def test_in_the_svd_samplers_own_windows(pairs, nets, node, ours):
    pair = pairs("svd")
    controlled = ours(prompts(pair.config), nets("sd2"), hints(CLIP))
    latent = {"samples": torch.zeros(CLIP, 4, 8, 8)}
    arguments = (latent, 5, 2, 1.0, 2.0, "linear", "euler", "karras")
    result, plain = (
        run_node(node("TemporalUNetSVDSampler"), pair.ours, *conds, *arguments, window_frames=4, window_overlap=1,
                 closed_loop=True)[0]["samples"]
        for conds in (controlled, prompts(pair.config))
    )
    assert torch.isfinite(result).all() and relative_error(result, plain) > 1e-3


# errors


def test_a_net_of_another_family_is_refused(pairs, nets, ours):
    for name, net, words in (("svd", "sd1", "Stable Diffusion 1"), ("sdxl", "sd1", "SDXL"), ("sd1", "sdxl", "SDXL")):
        with pytest.raises(ValueError, match="Apply ControlNet Residuals") as error:
            run(pairs(name).ours, ours(prompts(SMALL[name]), nets(net), hints(1)))
        assert words in str(error.value)


def test_an_adapter_of_another_family_is_an_error(pairs, nets, ours):
    with pytest.raises((ValueError, RuntimeError)):
        run(pairs("sd1").ours, ours(prompts(SMALL["sd1"]), nets("sdxl adapter"), hints(1)))


@pytest.mark.parametrize("count", [2, 4])
def test_a_wrong_number_of_images_is_an_error(pairs, nets, ours, count):
    with pytest.raises(ValueError, match=f"{count} control images for 3 frames"):
        run(pairs("svd").ours, ours(prompts(SMALL["svd"]), nets("sd2"), hints(count)), frames=3)


def test_a_wrong_number_of_masks_is_an_error(pairs, nets, ours):
    with pytest.raises(ValueError, match="2 masks for 3 frames"):
        run(pairs("svd").ours, ours(prompts(SMALL["svd"]), nets("sd2"), hints(1), mask=torch.ones(2, 8, 8)), frames=3)


def test_after_an_error_the_next_run_is_right(pairs, nets, ours):
    pair = pairs("svd")
    conds = ours(prompts(pair.config), nets("sd2"), hints(1))
    before = run(pair.ours, conds, frames=3)
    with pytest.raises(ValueError):
        run(pair.ours, ours(prompts(pair.config), nets("sd2"), hints(2)), frames=3)
    assert torch.equal(run(pair.ours, conds, frames=3), before)


def test_the_hosts_model_takes_our_node_too(nets, ours, theirs):
    model = host_model(random_weights(SMALL["sd1"]), ROWS["sd1"])
    conds, image = prompts(SMALL["sd1"]), hints(2)
    result = run(model, ours(conds, nets("sd1"), image))
    assert relative_error(result, run(model, theirs(conds, nets("sd1"), image))) <= 1e-5


@pytest.mark.skipif(not hasattr(comfy.controlnet.ControlBase, "deepclone_multigpu"), reason="0.30.0 has multi-GPU clones")
def test_a_multigpu_clone_gives_the_same_residuals(pairs, nets, ours):
    pair = pairs("sd1")
    control = ours(prompts(pair.config), nets("sd1"), hints(3), frame_strengths="0:0.5, 1:1")[0][0][1]["control"]
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    clone = control.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    assert control.get_instance_for_device(torch.device("cpu")) is clone
    assert clone.get_models_only_self()[0].model is not nets("sd1").control_model
    ours_, theirs_ = residuals_of(control, pair, x), residuals_of(clone, pair, x)
    assert all(torch.equal(a, b) for place in ours_ for a, b in zip(ours_[place], theirs_[place]))
