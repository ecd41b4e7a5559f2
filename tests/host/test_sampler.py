"""SVD Temporal UNet Sampler and SVD Image to Video, against the host's nodes and against explicit formulas."""

import json
import logging

import comfy.clip_vision
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import comfy.utils
import pytest
import torch

from support.families import FULL, relative_error
from support.oracle import CPU, TWO_LEVELS, Pair, fill, prompts, run_node, sample

FRAMES = 5


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("sampler"), "svd", config=TWO_LEVELS)


@pytest.fixture
def ours(svd, node):
    """Our sampler node on our MODEL (or `model`), with short names for its inputs."""

    def run(guidance="linear", *, model=None, min_cfg=1.0, max_cfg=2.5, sampler="euler", scheduler="karras", steps=2,
            frames=FRAMES, seed=5, latent=None, **options):
        positive, negative = prompts(svd.config)
        latent = {"samples": torch.zeros(frames, 4, 8, 8), **(latent or {})}
        return run_node(
            node("TemporalUNetSVDSampler"), model or svd.ours, positive, negative, latent, seed, steps, min_cfg, max_cfg,
            guidance, sampler, scheduler, **options,
        )[0]["samples"]

    return run


@pytest.fixture
def host(svd, node):
    """The host's KSampler on the same MODEL (or `model`), with its guidance node where `guide` names one.

    The same MODEL, so that the node alone is compared: two networks differ by rounding, which guidance multiplies.
    """

    def run(guide=None, *, model=None, min_cfg=1.0, max_cfg=2.5, sampler="euler", scheduler="karras", **options):
        model = model or svd.ours
        if guide:
            model = run_node(node(guide), model, min_cfg)[0]
        return sample(model, *prompts(svd.config), frames=options.pop("frames", FRAMES), cfg=max_cfg, sampler=sampler,
                      scheduler=scheduler, **options)

    return run


def scaled(model, scale_at):
    """A clone whose guidance is cond + (s - 1)(cond - uncond) with s = scale_at(step) of each frame: the formula itself."""
    model = model.clone()

    def guide(args):
        sigmas = args["model_options"]["transformer_options"]["sample_sigmas"]
        step = int((sigmas[:-1] >= args["sigma"][0] * (1 - 1e-4)).sum()) - 1
        scale = torch.as_tensor(scale_at(step, len(sigmas) - 1), dtype=torch.float32).reshape(-1, 1, 1, 1)
        return args["uncond"] + scale * (args["cond"] - args["uncond"])

    model.set_model_sampler_cfg_function(guide, disable_cfg1_optimization=True)
    return model


def counted(model):
    """A clone and the list of (rows, conditions) of each network call that it will make."""
    model, calls = model.clone(), []

    def wrapper(executor, x, *args, **kwargs):
        calls.append((x.shape[0], tuple(args[-1]["cond_or_uncond"])))
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "count", wrapper)
    return model, calls


QUICK = "euler", "dpmpp_2m", "uni_pc"  # the others are in the whole round
GUIDES = {"linear": "VideoLinearCFGGuidance", "triangle": "VideoTriangleCFGGuidance", "constant": None}
MANY = ["euler", "heun", "dpmpp_2m", "euler_ancestral", "uni_pc", "dpmpp_2m_sde", "lcm", "ddim", "euler_cfg_pp"]
SAMPLERS = {"linear": MANY, "triangle": ["euler", "uni_pc"], "constant": ["euler", "heun", "euler_ancestral", "euler_cfg_pp"]}


@pytest.mark.parametrize("guidance, sampler", [
    pytest.param(guidance, sampler, marks=() if sampler in QUICK else pytest.mark.slow)
    for guidance in GUIDES for sampler in SAMPLERS[guidance]
])
def test_equals_ksampler_with_the_hosts_guidance(ours, host, guidance, sampler):
    result = ours(guidance, min_cfg=1.5, max_cfg=3.0, sampler=sampler)
    expected = host(GUIDES[guidance], min_cfg=1.5, max_cfg=3.0, sampler=sampler)
    assert torch.isfinite(result).all()
    assert relative_error(result, expected) <= 1e-5


def test_each_guidance_shape_has_an_effect(ours):
    results = [ours(shape, min_cfg=1.5, max_cfg=3.0) for shape in ("linear", "triangle", "constant")]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert relative_error(a, b) > 1e-3


@pytest.mark.parametrize("guidance, node_id", [("linear", "VideoLinearCFGGuidance"), ("constant", None)])
def test_takes_a_model_that_the_host_loaded(ours, host, svd, guidance, node_id):
    theirs = host(node_id, model=svd.host)
    assert relative_error(ours(guidance, model=svd.host), theirs) <= 1e-5
    assert relative_error(ours(guidance), theirs) <= 1e-4  # our network against the host's


@pytest.mark.parametrize("min_cfg, max_cfg", [(3.0, 1.0), (0.0, 1.0), (2.0, 1.5)])
def test_falling_guidance_and_a_maximum_of_one_are_right(ours, host, svd, min_cfg, max_cfg):
    """At exactly 1 the host's KSampler leaves the negative out, and its linear guidance then mixes with zeros."""
    model = scaled(svd.ours, lambda step, steps: torch.linspace(min_cfg, max_cfg, FRAMES))
    expected = host(model=model, max_cfg=7.0)
    assert relative_error(ours(min_cfg=min_cfg, max_cfg=max_cfg), expected) <= 1e-5


def test_the_hosts_own_linear_guidance_is_wrong_at_one(ours, host):
    assert relative_error(host("VideoLinearCFGGuidance", min_cfg=3.0, max_cfg=1.0), ours(min_cfg=3.0, max_cfg=1.0)) > 0.01


def test_a_scale_of_one_everywhere_leaves_the_negative_out(ours, svd, host):
    model, calls = counted(svd.ours)
    result = ours(model=model, min_cfg=1.0, max_cfg=1.0)
    assert calls == [(FRAMES, (0,))] * 2
    assert relative_error(result, host(max_cfg=1.0)) <= 1e-5


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_frames(ours, host, frames):
    assert relative_error(ours(frames=frames), host("VideoLinearCFGGuidance", frames=frames)) <= 1e-5


CURVES = [("0:1.5, 1:3.0", "linear"), ("0:1.5, 0.5:3, 1:1.5", "triangle"), ("0.3:3", "constant")]


@pytest.mark.parametrize("curve, shape", CURVES)
def test_a_curve_that_says_the_same_gives_the_same(ours, curve, shape):
    expected = ours(shape, min_cfg=1.5, max_cfg=3.0)
    assert relative_error(ours("curve", guidance_curve=curve, min_cfg=9.0, max_cfg=9.0), expected) <= 1e-5


def test_a_curve_of_its_own_equals_the_formula(ours, host, svd):
    model = scaled(svd.ours, lambda step, steps: [2.0, 2.0, 2.0, 4.0, 6.0])
    assert relative_error(ours("curve", guidance_curve="0.5:2, 1:6"), host(model=model)) <= 1e-5


@pytest.mark.parametrize("curve", ["", "0", "0:a", "0:1, 0:2", "1:1, 0:1", "0:1, 2:1", "0:nan", "-0.1:1", "0:1,,"])
def test_bad_curves_are_refused(ours, curve):
    with pytest.raises(ValueError, match="guidance_curve"):
        ours("curve", guidance_curve=curve)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["min_cfg", "max_cfg", "guidance_start", "guidance_end"])
def test_numbers_that_are_none_are_refused(ours, name, number):
    with pytest.raises(ValueError, match=f"SVD Temporal UNet Sampler: {name} is (NaN|infinite), expected a finite number"):
        ours(**{name: number})


def test_guidance_that_ends_before_it_starts_is_refused(ours):
    with pytest.raises(ValueError, match="^SVD Temporal UNet Sampler: guidance_start 0.8 lies after guidance_end 0.2"):
        ours(guidance_start=0.8, guidance_end=0.2)


SHARES = [("euler", *share) for share in ((0.25, 0.75), (0.5, 1.0), (0.0, 0.5), (1.0, 1.0), (0.0, 0.0), (0.3, 0.3))]
SHARES += [("dpmpp_2m", 0.25, 0.75), ("heun", 0.25, 0.75), ("euler_cfg_pp", 0.25, 0.75), ("euler_cfg_pp", 0.5, 1.0)]


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("sampler, start, end", SHARES)
def test_guidance_acts_in_its_share_of_the_steps_alone(ours, host, svd, sampler, start, end):
    """Step i of n is guided where start <= i/n < end; an end of 1 takes the last as well."""
    linear = torch.linspace(1.5, 3.0, FRAMES)

    def scale_at(step, steps):
        guided = start <= step / steps and (step / steps < end or end == 1)
        return linear if guided else torch.ones(FRAMES)

    expected = host(model=scaled(svd.ours, scale_at), sampler=sampler, steps=4, max_cfg=7.0)
    result = ours(min_cfg=1.5, max_cfg=3.0, guidance_start=start, guidance_end=end, steps=4, sampler=sampler)
    assert relative_error(result, expected) <= 1e-5


def test_unguided_steps_leave_the_negative_out(ours, svd):
    model, calls = counted(svd.ours)
    ours(model=model, guidance_start=0.25, guidance_end=0.75, steps=4)
    rows = [sum(rows for rows, _ in calls)]
    assert rows == [FRAMES * (1 + 2 + 2 + 1)]
    assert sorted(calls[0][1]) == [0] and sorted(calls[-1][1]) == [0]


@pytest.mark.parametrize("denoise", [0.5, 0.01, 0.0])
def test_denoise_below_one(ours, host, denoise):
    start = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    result = ours(denoise=denoise, latent={"samples": start}, steps=3)
    expected = host("VideoLinearCFGGuidance", denoise=denoise, samples=start, steps=3)
    assert relative_error(result, expected) <= 1e-5


def test_noise_mask_and_batch_index(ours, host):
    start = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(FRAMES, 1, 64, 64)
    mask[2:, :, :, 32:] = 1
    latent = {"samples": start, "noise_mask": mask, "batch_index": [4, 3, 2, 1, 0]}
    result = ours(latent=latent)
    assert relative_error(result, host("VideoLinearCFGGuidance", **latent)) <= 1e-5
    assert relative_error(result[:2], start[:2]) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("closed_loop", [False, True])
@pytest.mark.parametrize("frames, window, overlap", [(9, 4, 1), pytest.param(8, 5, 2, marks=pytest.mark.one_host)])
def test_the_hosts_own_context_windows_node_is_left_to_act(ours, host, svd, node, frames, window, overlap, closed_loop):
    schedule = "looped_uniform" if closed_loop else "standard_static"
    windowed = run_node(
        node("ContextWindowsManual"), svd.ours, window, overlap, schedule, 1, closed_loop, "pyramid", 0, False
    )[0]
    expected = host("VideoLinearCFGGuidance", model=windowed, frames=frames, steps=3)
    result = ours(model=windowed, frames=frames, steps=3)
    assert torch.isfinite(result).all()
    assert relative_error(result, expected) <= 1e-5
    assert relative_error(result, ours(frames=frames, steps=3)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("schedule, stride, closed_loop, fuse", [
    ("standard_uniform", 1, False, "pyramid"), ("standard_uniform", 2, False, "relative"), ("batched", 1, False, "flat"),
    ("looped_uniform", 2, True, "overlap-linear"), ("standard_static", 1, False, "relative"),
])
def test_the_hosts_other_schedules_and_fusings_act_as_in_ksampler(ours, host, svd, node, schedule, stride, closed_loop, fuse):
    windowed = run_node(
        node("ContextWindowsManual"), svd.ours, 4, 1, schedule, stride, closed_loop, fuse, 0, False
    )[0]
    result = ours(model=windowed, frames=9, steps=2)
    assert torch.isfinite(result).all()
    assert relative_error(result, host("VideoLinearCFGGuidance", model=windowed, frames=9, steps=2)) <= 1e-5


@pytest.mark.slow
@pytest.mark.one_host
def test_windows_with_guidance_in_a_share_of_the_steps(ours):
    result = ours(frames=8, window_frames=4, window_overlap=1, steps=4, guidance_start=0.25, guidance_end=0.5)
    assert torch.isfinite(result).all()


@pytest.mark.slow
def test_windows_take_a_model_that_the_host_loaded(ours, svd):
    """The contract: any SVD-family MODEL is taken, also one that the host loaded."""
    options = {"frames": 8, "window_frames": 4, "window_overlap": 1}
    assert torch.isfinite(ours(model=svd.host, **options)).all()


def test_windows_as_long_as_the_clip_change_nothing(ours):
    assert torch.equal(ours(window_frames=FRAMES), ours()) and torch.equal(ours(window_frames=40), ours())


def test_a_window_of_one_frame(ours):
    assert torch.isfinite(ours(frames=3, window_frames=1, window_overlap=0)).all()


def test_overlap_as_long_as_the_window_is_refused(ours):
    with pytest.raises(ValueError, match="window_overlap"):
        ours(frames=8, window_frames=4, window_overlap=4)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(ours):
    assert torch.equal(ours(), ours())
    assert relative_error(ours(seed=6), ours()) > 0.01


def test_the_callers_model_and_latent_stay_as_they_were(ours, svd):
    before = {key: dict(value) if isinstance(value, dict) else value for key, value in svd.ours.model_options.items()}
    latent = {"samples": torch.zeros(FRAMES, 4, 8, 8), "noise_mask": torch.ones(1, 8, 8)}
    ours(latent=latent, frames=FRAMES)
    assert svd.ours.model_options == before
    assert torch.equal(latent["samples"], torch.zeros(FRAMES, 4, 8, 8)) and torch.equal(latent["noise_mask"], torch.ones(1, 8, 8))


@pytest.mark.parametrize("feature", ["RescaleCFG", pytest.param("PerturbedAttentionGuidance", marks=pytest.mark.slow)])
def test_constant_guidance_keeps_what_other_nodes_put_on_the_model(ours, host, svd, node, feature):
    patched = run_node(node(feature), svd.ours, 0.7)[0]
    result = ours("constant", model=patched)
    assert relative_error(result, host(model=patched)) <= 1e-5
    assert relative_error(result, ours("constant")) > 1e-4


# Video Options


WINDOWED = {"window_frames": 4, "window_overlap": 1, "closed_loop": True, "keep_colors": False}
SHARE = {"guidance_start": 0.25, "guidance_end": 0.5}


@pytest.fixture
def options(node):
    """The output of Video Options with these inputs; others have the defaults of its schema."""

    def make(**inputs):
        video_options = node("TemporalUNetVideoOptions")
        defaults = {one.id: one.default for one in video_options.define_schema().inputs}
        return run_node(video_options, **{**defaults, **inputs})[0]

    return make


@pytest.mark.one_host
@pytest.mark.parametrize("inputs, frames", [
    ({}, 4), (SHARE, 4), *(pytest.param(given, 8, marks=pytest.mark.slow) for given in (WINDOWED, WINDOWED | SHARE)),
])
def test_video_options_do_what_the_samplers_own_inputs_did(ours, options, inputs, frames, caplog):
    result = ours(frames=frames, steps=4, options=options(**inputs))
    assert torch.equal(result, ours(frames=frames, steps=4, **inputs))
    assert not inputs or not torch.equal(result, ours(frames=frames, steps=4))
    assert "Video Options" not in caplog.text


@pytest.mark.slow
@pytest.mark.one_host
def test_video_options_decide_over_the_samplers_own_inputs_and_the_log_says_so(ours, options, caplog):
    result = ours(frames=8, steps=2, options=options(window_frames=4, window_overlap=2), window_frames=6, closed_loop=True)
    assert torch.equal(result, ours(frames=8, steps=2, window_frames=4, window_overlap=2))
    left_out = "inputs of the sampler itself are left out: window_frames 6 (4 there), closed_loop True (False there)."
    assert caplog.text.count(f"the connected Video Options decides; {left_out}") == 1


def test_a_loop_that_one_window_holds_is_said_to_do_nothing(ours, options, caplog):
    result = ours(frames=4, steps=1, options=options(closed_loop=True, window_frames=6, window_overlap=2))
    assert torch.equal(result, ours(frames=4, steps=1))
    assert "Video Options: closed_loop does nothing to 4 frames, since one window holds them all (6)." in caplog.text


@pytest.mark.parametrize("inputs, message", [
    ({"window_frames": 4, "window_overlap": 4}, "window_overlap 4 leaves nothing of windows of 4 frames"),
    ({"guidance_start": 0.8, "guidance_end": 0.2}, "guidance_start 0.8 lies after guidance_end 0.2"),
    ({"guidance_end": float("nan")}, "guidance_end is NaN"),
    ({"window_frames": -1}, "window_frames is -1, expected 0 to 4096"),
    ({"guidance_end": 1.5}, "guidance_end is 1.5, expected 0 to 1"),
    ({"guidance_start": 2.0}, "guidance_start is 2, expected 0 to 1"),
])
def test_video_options_that_contradict_each_other_are_refused_before_the_run_and_in_it(node, options, inputs, message):
    assert node("TemporalUNetVideoOptions").validate_inputs(**inputs).startswith(message)
    with pytest.raises(ValueError, match=f"^Video Options: {message}"):
        options(**inputs)


@pytest.mark.parametrize("inputs, message", [
    ({"guidance": "curve", "guidance_curve": "0:1, banana"}, "guidance_curve: found 'banana'"),
    ({"guidance": "spiral"}, "guidance is 'spiral', expected one of linear, triangle"),
    ({"guidance": "linear", "guidance_curve": "banana"}, None),
    ({"guidance": None, "guidance_curve": "banana"}, None),  # linked, as the host gives it: known in the run
    ({"guidance": "curve", "guidance_curve": None}, None),
])
def test_a_curve_is_checked_before_the_run_where_it_acts(node, inputs, message):
    said = node("TemporalUNetSVDSampler").validate_inputs(**inputs)
    assert said is True if message is None else said.startswith(message)


def test_options_of_another_kind_are_refused(ours):
    with pytest.raises(ValueError, match="^SVD Temporal UNet Sampler: options is no set of options. Connect Video Options"):
        ours(options={"window_frames": 3})


def test_a_shape_of_guidance_that_a_link_gives_is_checked_in_the_run(ours):
    with pytest.raises(ValueError, match="^SVD Temporal UNet Sampler: guidance is 'spiral', expected one of linear, triangle"):
        ours("spiral")


@pytest.mark.parametrize("linked, inputs", [("window_overlap", {"window_frames": 4}), ("window_frames", {"window_overlap": 6})])
def test_what_a_link_will_give_video_options_is_not_judged_before_the_run(node, linked, inputs):
    assert node("TemporalUNetVideoOptions").validate_inputs(**inputs, **{linked: None}) is True


# Warnings of what is far from training


@pytest.fixture(scope="module")
def real_svd():
    """The host's MODEL of SVD at its real width, but for the network, of which a denoise of 0 makes no call."""
    width = FULL["svd"].model_channels
    config = comfy.supported_models.SVD_img2vid({
        **comfy.supported_models.SVD_img2vid.unet_config, "model_channels": width, "disable_unet_model_creation": True})
    config.set_inference_dtype(torch.float32, None)
    return comfy.model_patcher.ModelPatcher(config.get_model({}, ""), load_device=CPU, offload_device=CPU)


@pytest.fixture
def warnings(ours, real_svd, caplog):
    """What the log says at WARNING of a run of `frames` frames of `height` x `width` pixels."""

    def run(frames=25, height=576, width=1024, trained=None, model=real_svd, **options):
        model = model.clone()
        if trained is not None:
            model.set_attachments("temporal_unet.num_frames", trained)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ours(model=model, latent={"samples": torch.zeros(frames, 4, height // 8, width // 8)}, denoise=0.0, **options)
        return [record.getMessage() for record in caplog.records if "SVD Temporal UNet Sampler" in record.getMessage()]

    return run


@pytest.mark.parametrize("frames, trained, window", [
    (14, None, 0), (25, None, 0), (14, 14, 0), (25, 25, 0), (21, 14, 21), (37, None, 37), (37, 25, 37), (100, None, 0),
    (100, 14, 0), (100, 14, 14), (7, None, 0),
])
def test_no_warning_is_given_near_the_training(warnings, frames, trained, window):
    assert warnings(frames, trained=trained, window_frames=window) == []
    assert warnings(frames, 1024, 576, trained=trained, window_frames=window) == []


@pytest.mark.parametrize("frames, trained, window, seen, length", [
    (100, None, 100, 100, 25), (60, None, 4096, 60, 25), (38, None, 38, 38, 25), (22, 14, 22, 22, 14), (100, 14, 25, 25, 14),
    (38, 25, 38, 38, 25),
])
def test_more_frames_at_once_than_trained_on_are_warned_of(warnings, frames, trained, window, seen, length):
    said, = warnings(frames, trained=trained, window_frames=window)
    assert f"{seen} frames at once are more than the {length} " in said and "Set window_frames to 0" in said


@pytest.mark.parametrize("frames, window, seen", [(6, 0, 6), (1, 0, 1), (100, 6, 6)])
def test_fewer_frames_at_once_than_trained_on_are_warned_of(warnings, frames, window, seen):
    said, = warnings(frames, window_frames=window, window_overlap=2)
    assert f"{seen} frames at once are fewer than SVD was trained on (14 or 25)" in said and "Make 14" in said


@pytest.mark.parametrize("height, width, said", [(320, 320, True), (1152, 2048, True), (512, 512, False), (768, 1024, False)])
def test_a_size_far_from_the_training_is_warned_of(warnings, height, width, said):
    found = warnings(14, height, width)
    assert len(found) == said
    assert all(f"the video is {width}x{height}, SVD was trained on 1024x576" in message for message in found)


@pytest.mark.parametrize("length, said", [(16, False), (60, True)])
def test_windows_of_the_hosts_own_node_count_as_what_is_seen_at_once(warnings, node, real_svd, length, said):
    windowed = run_node(node("ContextWindowsManual"), real_svd, length, 4, "standard_static", 1, False, "pyramid", 0, False)[0]
    found = warnings(100, model=windowed)
    assert len(found) == said and all(f"{length} frames at once" in message for message in found)


def test_a_miniature_is_not_compared_with_the_real_one(warnings, svd):
    assert warnings(60, 64, 64, model=svd.ours, window_frames=60) == []


# SVD Image to Video


@pytest.fixture(scope="module")
def vae():
    """The host's own tiny VAE (TAESD) with random weights."""
    return comfy.sd.VAE(sd=fill(comfy.taesd.taesd.TAESD(latent_channels=4), 6).state_dict())


@pytest.fixture(scope="module")
def clip_vision(tmp_path_factory):
    """The host's CLIP vision model, small, with SVD's embedding width."""
    path = tmp_path_factory.mktemp("clip") / "small.json"
    path.write_text(json.dumps({
        "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "gelu", "hidden_size": 64, "image_size": 56,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 128, "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model", "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 2,
        "patch_size": 14, "projection_dim": 1024, "torch_dtype": "float32",
    }))
    model = comfy.clip_vision.ClipVisionModel(str(path))
    fill(model.model, 3)
    return model


@pytest.fixture
def image():
    return torch.rand(1, 48, 80, 3, generator=torch.Generator().manual_seed(4))


def condition(node, image, vae, width=64, height=64, frames=3, **options):
    return run_node(node("TemporalUNetSVDConditioning"), image, vae, width, height, frames, 127, 6, **options)[:3]


def test_conditioning_equals_the_hosts_without_augmentation(node, image, vae, clip_vision):
    ours = condition(node, image, vae, clip_vision=clip_vision)
    host = run_node(node("SVD_img2vid_Conditioning"), clip_vision, image, vae, 64, 64, 3, 127, 6, 0.0)
    for (ours_cond, ours_extra), (host_cond, host_extra) in zip([ours[0][0], ours[1][0]], [host[0][0], host[1][0]], strict=True):
        assert ours_cond.shape == (1, 1, 1024) and torch.equal(ours_cond, host_cond)
        assert ours_extra.keys() - {"temporal_unet.first_image"} == host_extra.keys()
        assert torch.equal(ours_extra["concat_latent_image"], host_extra["concat_latent_image"])
        assert all(ours_extra[key] == host_extra[key] for key in ("motion_bucket_id", "fps", "augmentation_level"))
    assert torch.equal(ours[2]["samples"], host[2]["samples"])
    assert ours[0][0][0].abs().max() > 0


def test_conditioning_without_an_image_encoder_is_a_zero_embedding(node, image, vae):
    positive, negative, latent = condition(node, image, vae)
    assert torch.equal(positive[0][0], torch.zeros(1, 1, 1024)) and torch.equal(negative[0][0], torch.zeros(1, 1, 1024))
    assert positive[0][1]["concat_latent_image"].abs().max() > 0 and latent["samples"].shape == (3, 4, 8, 8)


def test_augmentation_is_repeatable_seeded_and_does_not_touch_the_image(node, image, vae):
    before = image.clone()
    first, again, other = (
        condition(node, image, vae, augmentation_level=0.3, seed=seed)[0][0][1]["concat_latent_image"] for seed in (1, 1, 2)
    )
    plain = condition(node, image, vae, seed=1)[0][0][1]["concat_latent_image"]
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, plain)
    assert torch.equal(image, before)
    assert condition(node, image, vae, augmentation_level=0.3)[0][0][1]["augmentation_level"] == 0.3


def test_augmentation_noise_has_the_level_that_is_asked_for(node, vae, monkeypatch):
    """What the VAE is given: the image plus noise of that standard deviation."""
    seen = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: (seen.append(pixels.clone()), encode(pixels))[1])
    gray = torch.full((1, 256, 256, 3), 0.5)
    condition(node, gray, vae, 256, 256, augmentation_level=0.25, seed=3)
    assert seen[0].shape == (1, 256, 256, 3)
    assert abs((seen[0] - 0.5).std().item() - 0.25) < 0.005


def expected_pixels(image, mode):
    """80x48 to 64x64: stretched; cut to its middle 48x48; or 64x38 between bars of 13 rows."""
    image = image.movedim(-1, 1)
    if mode == "stretch":
        return torch.nn.functional.interpolate(image, (64, 64), mode="bilinear").movedim(1, -1)
    if mode == "crop":
        return torch.nn.functional.interpolate(image[..., 16:64], (64, 64), mode="bilinear").movedim(1, -1)
    inner = torch.nn.functional.interpolate(image, (38, 64), mode="bilinear")
    return torch.cat([torch.zeros(1, 3, 13, 64), inner, torch.zeros(1, 3, 13, 64)], dim=2).movedim(1, -1)


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_resize_modes(node, image, vae, mode):
    latent = condition(node, image, vae, resize=mode)[0][0][1]["concat_latent_image"]
    assert relative_error(latent, vae.encode(expected_pixels(image, mode))) <= 1e-5


@pytest.mark.parametrize("size", [(64, 96), (72, 40), (8 * 7, 8 * 13), (16, 16)])
@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(48, 80), (300, 11), (64, 64)])
def test_resize_to_any_size(node, vae, mode, size, shape):
    photo = torch.rand(1, *shape, 3)
    positive, _, latent = condition(node, photo, vae, *size, resize=mode)
    assert positive[0][1]["concat_latent_image"].shape == (1, 4, size[1] // 8, size[0] // 8)
    assert latent["samples"].shape == (3, 4, size[1] // 8, size[0] // 8)


def test_an_image_with_alpha_and_a_batch_use_the_first_images_colors(node, image, vae):
    rgba = torch.cat([image, torch.rand(1, 48, 80, 1)], dim=-1)
    plain = condition(node, image, vae)[0][0][1]["concat_latent_image"]
    assert torch.equal(condition(node, rgba, vae)[0][0][1]["concat_latent_image"], plain)
    batch = torch.cat([image, 1 - image])
    assert torch.equal(condition(node, batch, vae)[0][0][1]["concat_latent_image"], plain)


def test_a_whole_video_from_image_to_latent_equals_the_hosts_nodes(node, svd, image, vae, clip_vision, ours):
    positive, negative, latent = condition(node, image, vae, clip_vision=clip_vision)
    result = run_node(
        node("TemporalUNetSVDSampler"), svd.ours, positive, negative, latent, 7, 2, 1.0, 2.5, "linear", "euler", "karras"
    )[0]["samples"]
    positive, negative, latent = run_node(
        node("SVD_img2vid_Conditioning"), clip_vision, image, vae, 64, 64, 3, 127, 6, 0.0
    )
    guided = run_node(node("VideoLinearCFGGuidance"), svd.ours, 1.0)[0]
    expected = sample(guided, positive, negative, cfg=2.5, scheduler="karras", seed=7, samples=latent["samples"])
    assert relative_error(result, expected) <= 1e-5
