"""ControlNeXt-SVD in the host: against the authors' formula, hooked into the UNet's own layers by hand."""

from unittest.mock import patch

import comfy.controlnet
import folder_paths
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from support import controlnexts
from support.families import random_weights, relative_error
from support.oracle import ROWS, SMALL, Pair, controlnet, hints, host_model, prompts, run_node, sample
from support.published import WIDTHS, Published, gains_of

CLIP = 7


@pytest.fixture(scope="module")
def pair(pack, tmp_path_factory):
    """Our SVD MODEL and the host's."""
    return Pair(pack, tmp_path_factory.mktemp("controlnext"), "svd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of `controlnet` models with both versions in it."""
    folder = tmp_path_factory.mktemp("controlnet")
    for version, width in WIDTHS.items():
        save_file(controlnexts.tensors(version, width), folder / f"pose_v{version}.safetensors")
    folder_paths.add_model_folder_path("controlnet", str(folder))
    return folder


@pytest.fixture(scope="module")
def nets(node, folder):
    """The CONTROL_NET of each version, loaded by our node."""
    made = {v: node("TemporalUNetControlNetLoader").execute(f"pose_v{v}.safetensors").result[0] for v in WIDTHS}
    return made.__getitem__


@pytest.fixture
def ours(node):
    def apply(conds, net, image, strength=1.0, start=0.0, end=1.0, **options):
        return run_node(node("TemporalUNetApplyControlNetResiduals"), *conds, net, image, strength, start, end, **options)

    return apply


def run(model, conds, frames=3, steps=1, **options):
    return sample(model, *conds, frames=frames, steps=steps, **options)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ours", "host"])
@pytest.mark.parametrize("version, count", [
    (2, 3), (1, 3), *(pytest.param(*each, marks=pytest.mark.one_host) for each in ((2, 1), (1, 1))),
])
def test_equals_the_published_formula(pair, nets, ours, model, version, count):
    model, conds, images = getattr(pair, model), prompts(pair.config), hints(count)
    result = run(model, ours(conds, nets(version), images), steps=2)
    with Published(model, (version, images, gains_of(version))) as by_hand:
        expected = run(by_hand, conds, steps=2)
    assert relative_error(result, expected) <= 1e-5
    assert relative_error(result, run(model, conds, steps=2)) > 1e-3, "the control did nothing"


def test_our_model_and_the_hosts_agree(pair, nets, ours):
    conds = ours(prompts(pair.config), nets(2), hints(3))
    assert relative_error(run(pair.ours, conds), run(pair.host, conds)) <= 1e-4


@pytest.mark.one_host
@pytest.mark.parametrize("size", [pytest.param((8, 12), marks=pytest.mark.slow), (9, 13)])
def test_other_sizes_of_latent_and_image(pair, nets, ours, size):
    conds, images = prompts(pair.config), hints(1, size=40)
    height, width = 8 * size[0], 8 * size[1]
    cut = round((40 - 40 * height / width) / 2)  # the middle, of the latent's shape
    scaled = F.interpolate(images.movedim(-1, 1)[:, :, cut:40 - cut], (height, width), mode="bilinear").movedim(1, -1)
    with Published(pair.ours, (2, scaled, gains_of(2))) as by_hand:
        expected = run(by_hand, conds, size=size)
    assert relative_error(run(pair.ours, ours(conds, nets(2), images), size=size), expected) <= 1e-5


@pytest.mark.one_host
@pytest.mark.parametrize("version", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_strength_scales_the_feature(pair, nets, ours, version):
    conds, images = prompts(pair.config), hints(3)
    with Published(pair.ours, (version, images, gains_of(version, 2.0))) as by_hand:
        expected = run(by_hand, conds)
    assert relative_error(run(pair.ours, ours(conds, nets(version), images, 2.0)), expected) <= 1e-5


def test_strength_zero_is_bit_equal_to_no_control(pair, nets, ours):
    conds, images = prompts(pair.config), hints(3)
    plain = run(pair.ours, conds)
    assert torch.equal(run(pair.ours, ours(conds, nets(2), images, 0.0)), plain)
    assert torch.equal(run(pair.ours, ours(conds, nets(2), images, frame_strengths="0:0")), plain)


@pytest.mark.parametrize("model", ["ours", pytest.param("host", marks=pytest.mark.slow)])
def test_v2_leaves_the_unconditioned_half_untouched(pair, nets, ours, model):
    """Bit-equal; v1 acts on it, as in its authors' pipeline."""
    model, conds = getattr(pair, model), prompts(pair.config)

    def halves(conds):
        """The network's answers to the one call of a step, by `cond_or_uncond`."""
        seen, watched = {}, model.clone()

        def call(apply_model, args):
            out = apply_model(args["input"], args["timestep"], **args["c"])
            seen.update(zip(args["cond_or_uncond"], out.chunk(2), strict=True))
            return out

        watched.set_model_unet_function_wrapper(call)
        run(watched, conds)
        return seen[0], seen[1]

    conditioned, unconditioned = halves(conds)
    for version in (1, 2):
        changed = halves(ours(conds, nets(version), hints(3)))
        assert not torch.equal(changed[0], conditioned)
        assert torch.equal(changed[1], unconditioned) == (version == 2)


@pytest.mark.slow
@pytest.mark.one_host
def test_the_step_range(pair, nets, ours):
    conds, images = prompts(pair.config), hints(3)
    middle = pair.ours.model.model_sampling.percent_to_sigma(0.5)
    for start, end, acts in ((0.0, 0.5, lambda sigma: sigma >= middle), (0.5, 1.0, lambda sigma: sigma <= middle)):
        with Published(pair.ours, (2, images, gains_of(2)), acts=acts) as by_hand:
            expected = run(by_hand, conds, steps=3)
        assert relative_error(run(pair.ours, ours(conds, nets(2), images, 1.0, start, end), steps=3), expected) <= 1e-5


@pytest.mark.one_host
@pytest.mark.parametrize("version", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_frame_strengths_and_mask_weigh_the_feature(pair, nets, ours, version):
    conds, images = prompts(pair.config), hints(3)
    mask = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(8))
    size = {1: 1, 2: 4}[version]  # of the activations that the feature joins
    weights = F.interpolate(mask[:, None], (size, size), mode="bilinear") * torch.tensor([0.5, 1, 1.5]).view(3, 1, 1, 1)
    with Published(pair.ours, (version, images, [gain * weights for gain in gains_of(version)])) as by_hand:
        expected = run(by_hand, conds)
    result = run(pair.ours, ours(conds, nets(version), images, frame_strengths="0:0.5, 1:1.5", mask=mask))
    assert relative_error(result, expected) <= 1e-5


@pytest.mark.one_host
@pytest.mark.parametrize("version", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_where_our_unet_runs_the_halves_one_by_one(pair, pack, nets, ours, version):
    conds = ours(prompts(pair.config), nets(version), hints(3), frame_strengths="0:0.5, 1:1.5")
    together = run(pair.ours, conds)
    with patch.object(pack("nodes.bridge.model.memory_budget"), "ONE_BY_ONE", 0):
        assert relative_error(run(pair.ours, conds), together) <= 1e-5


# with others


@pytest.mark.slow
@pytest.mark.one_host
def test_two_in_a_row(pair, nets, ours):
    conds, first, second = prompts(pair.config), hints(3), hints(1, seed=22)
    chained = ours(ours(conds, nets(2), first), nets(2), second, 0.5)
    with Published(pair.ours, (2, first, gains_of(2)), (2, second, gains_of(2, 0.5))) as by_hand:
        expected = run(by_hand, conds)
    assert relative_error(run(pair.ours, chained), expected) <= 1e-5


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", ["ours", pytest.param("host", marks=pytest.mark.slow)])
def test_chained_with_a_net_of_residuals(pair, nets, ours, model, first):
    model, conds, images, other = getattr(pair, model), prompts(pair.config), hints(3), hints(3, seed=22)
    net = controlnet("sd2")
    residuals = ours(conds, net, other, 0.6)
    if first:
        chained = ours(ours(conds, nets(2), images), net, other, 0.6)
    else:
        chained = ours(residuals, nets(2), images)
    with Published(model, (2, images, gains_of(2))) as by_hand:
        expected = run(by_hand, residuals)
    assert relative_error(run(model, chained), expected) <= 1e-5


@pytest.mark.slow
def test_under_the_hosts_apply_node(pair, nets, ours, node):
    conds, images = prompts(pair.config), hints(3)
    theirs = run_node(node("ControlNetApplyAdvanced"), *conds, nets(2), images, 0.7, 0.0, 1.0)
    assert torch.equal(run(pair.ours, theirs), run(pair.ours, ours(conds, nets(2), images, 0.7)))
    fewer = run_node(node("ControlNetApplyAdvanced"), *conds, nets(2), images[:2], 0.7, 0.0, 1.0)
    assert torch.equal(run(pair.ours, fewer), run(pair.ours, ours(conds, nets(2), images[[0, 1, 0]], 0.7)))


def test_patches_of_the_model_stay_and_come_first(pair, nets, ours):
    conds, images = prompts(pair.config), hints(3)
    model = pair.ours.clone()
    model.set_model_input_block_patch_after_skip(lambda h, options: h * 1.5 if options["block"] == ("input", 3) else h)
    model.set_model_output_block_patch(lambda h, skip, options: (h * 1.1, skip))
    before = list(model.model_options["transformer_options"]["patches"]["input_block_patch_after_skip"])
    with Published(model, (2, images, gains_of(2))) as by_hand:
        expected = run(by_hand, conds)
    assert relative_error(run(model, ours(conds, nets(2), images)), expected) <= 1e-5
    assert model.model_options["transformer_options"]["patches"]["input_block_patch_after_skip"] == before


# windows


@pytest.mark.slow
@pytest.mark.parametrize("version", [pytest.param(1, marks=pytest.mark.one_host), 2])
def test_images_follow_the_frames_of_the_hosts_windows(pair, nets, ours, node, version):
    conds, images = prompts(pair.config), hints(CLIP)
    windowed = run_node(node("ContextWindowsManual"), pair.ours, 4, 1, "standard_static", 1, False, "pyramid", 0, False)[0]
    with Published(windowed, (version, images, gains_of(version))) as by_hand:
        expected = run(by_hand, conds, frames=CLIP)
    result = run(windowed, ours(conds, nets(version), images), frames=CLIP)
    assert relative_error(result, expected) <= 1e-5
    with Published(windowed, (version, images[[0, 1, 2, 3, 0, 1, 2]], gains_of(version))) as by_hand:
        assert relative_error(result, run(by_hand, conds, frames=CLIP)) > 1e-4, "the frames do not show"


@pytest.mark.slow
@pytest.mark.one_host
def test_images_and_weights_follow_the_frames_of_our_windows(pair, nets, ours, node):
    conds, images = prompts(pair.config), hints(CLIP)
    weights = torch.linspace(0, 1, CLIP).reshape(-1, 1, 1, 1)

    def sampled(model, conds):
        return run_node(
            node("TemporalUNetSVDSampler"), model, *conds, {"samples": torch.zeros(CLIP, 4, 8, 8)}, 5, 1, 1.0, 2.0, "linear",
            "euler", "karras", window_frames=4, window_overlap=1, closed_loop=True,
        )[0]["samples"]

    with Published(pair.ours, (2, images, [gain * weights for gain in gains_of(2)])) as by_hand:
        expected = sampled(by_hand, conds)
    result = sampled(pair.ours, ours(conds, nets(2), images, frame_strengths="0:0, 1:1"))
    assert relative_error(result, expected) <= 1e-4  # each window goes on from the last
    assert relative_error(result, sampled(pair.ours, conds)) > 1e-3


# before, after, next to others


def test_nothing_is_left_behind(pair, nets, ours):
    conds, images = prompts(pair.config), hints(3)
    plain, controlled = run(pair.ours, conds), ours(conds, nets(2), images)
    control = controlled[0][0][1]["control"]
    first = run(pair.ours, controlled)
    failing = pair.ours.clone()
    failing.set_model_unet_function_wrapper(lambda *_: 1 / 0)  # called once the control has left its patch
    with pytest.raises(ZeroDivisionError):
        run(failing, controlled)
    assert torch.equal(run(pair.ours, controlled), first) and torch.equal(run(pair.ours, conds), plain)
    assert "input_block_patch_after_skip" not in pair.ours.model_options["transformer_options"].get("patches", {})
    assert control.inner.cond_hint is None and nets(2).cond_hint_original is None


def options_after(control, pair, kinds):
    """The options of a call of 3 frames for each of `kinds` after a control was asked to act."""
    model, options = pair.ours.model, {"cond_or_uncond": kinds}
    control.pre_run(model, model.model_sampling.percent_to_sigma)
    x = torch.zeros(3 * len(kinds), 4, 8, 8)
    assert control.get_control(x, torch.full((len(x),), 2.0), {}, len(kinds), options) is None
    control.cleanup()
    return options


def test_the_net_runs_once_for_both_halves_and_not_for_the_unconditioned_alone(pair, nets, ours):
    control, calls = ours(prompts(pair.config), nets(2), hints(3))[0][0][1]["control"], []
    handle = nets(2).control_model.register_forward_hook(lambda _, args, __: calls.append(args[0].shape[0]))
    assert "patches" not in options_after(control, pair, [1])
    assert calls == []
    options_after(control, pair, [1, 0])
    handle.remove()
    assert calls == [3]


@pytest.mark.skipif(not hasattr(comfy.controlnet.ControlBase, "deepclone_multigpu"), reason="0.30.0 has multi-GPU clones")
def test_a_multigpu_clone_acts_the_same(pair, nets, ours):
    control = ours(prompts(pair.config), nets(2), hints(3), 0.7)[0][0][1]["control"]
    clone = control.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    assert clone.inner.control_model is not control.inner.control_model
    assert clone.get_models_only_self()[0].model is clone.inner.control_model
    h = torch.randn(6, 32, 4, 4, generator=torch.Generator().manual_seed(6))
    changed = []
    for use in (control, clone):
        options = {**options_after(use, pair, [0, 1]), "block": ("input", 3)}
        for join in options["patches"]["input_block_patch_after_skip"]:
            changed.append(join(h, options))
    assert len(changed) == 2 and torch.equal(*changed) and not torch.equal(changed[0], h)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_an_image_model_is_refused(nets, ours, name):
    model = host_model(random_weights(SMALL[name]), ROWS[name])
    found = "^Apply ControlNet Residuals: this ControlNeXt is for Stable Video Diffusion, the model is"
    with pytest.raises(ValueError, match=found):
        run(model, ours(prompts(SMALL[name]), nets(2), hints(1)))


def test_a_unet_of_another_width_is_refused(pair, pack, ours, folder):
    save_file(controlnexts.tensors(2), folder / "real.safetensors")
    net = pack("nodes.bridge.control.controlnext_control").load_controlnext(str(folder / "real.safetensors"))
    with pytest.raises(ValueError, match="^Apply ControlNet Residuals: .* a feature of 320 channels, the model takes 32"):
        run(pair.ours, ours(prompts(pair.config), net, hints(1)))


# loading


@pytest.mark.slow
@pytest.mark.one_host
def test_half_precision_stays_in_the_file_and_acts(pair, pack, ours, folder):
    """On a CPU the host computes in fp32 what a file holds in fp16."""
    tensors = {name: value.half() for name, value in controlnexts.tensors(2, WIDTHS[2]).items()}
    save_file(tensors, folder / "half.safetensors")
    net = pack("nodes.bridge.control.controlnext_control").load_controlnext(str(folder / "half.safetensors"))
    conds, images = prompts(pair.config), hints(3)
    with Published(pair.ours, (2, images, gains_of(2))) as by_hand:
        expected = run(by_hand, conds)
    assert relative_error(run(pair.ours, ours(conds, net, images)), expected) <= 1e-3


@pytest.mark.parametrize("version, words", [(1, "before the middle block"), (2, "on the conditioned half alone")])
def test_info_states_what_it_is_and_how_it_acts(node, folder, version, words):
    info = node("TemporalUNetControlNetLoader").execute(f"pose_v{version}.safetensors").result[1]
    assert f"ControlNeXt-SVD v{version}" in info and words in info and "SVD UNet that comes with it" in info
    assert f"pose_v{version}.safetensors" in info and "M parameters" in info


@pytest.mark.parametrize("version", WIDTHS)
def test_pickled_as_its_authors_publish_it(pair, nets, node, pack, ours, folder, version):
    torch.save(controlnexts.tensors(version, WIDTHS[version]), folder / "controlnet.bin")
    net, info = node("TemporalUNetControlNetLoader").execute("controlnet.bin").result
    assert f"ControlNeXt-SVD v{version}" in info and "controlnet.bin" in info
    shown = pack("nodes.bridge.info.file_info").describe_controlnet_file(str(folder / "controlnet.bin"))
    assert shown == info.splitlines()
    conds, images = prompts(pair.config), hints(3)
    expected = run(pair.ours, ours(conds, nets(version), images))
    assert relative_error(run(pair.ours, ours(conds, net, images)), expected) <= 1e-5  # mapped tensors lie elsewhere


def test_a_damaged_file_is_one_clear_error(node, folder):
    tensors = {name: value for name, value in controlnexts.tensors(2).items() if not name.startswith("mid_convs.1")}
    save_file(tensors, folder / "damaged.safetensors")
    with pytest.raises(ValueError, match="damaged.safetensors: mid_convs.1.weight is missing"):
        node("TemporalUNetControlNetLoader").execute("damaged.safetensors")
