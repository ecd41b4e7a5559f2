"""Residuals as data: computed by a node, applied by one, saved and loaded, against the networks called by hand."""

import comfy.controlnet
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import unet
from support import controlnexts
from support.controls import anchored, by_hand, nets, ours, pairs, residuals_of, run, svd_net, theirs, windows_of  # noqa: F401
from support.families import random_weights, relative_error
from support.oracle import ROWS, SMALL, hints, host_model, prompts, run_node, sample
from support.published import WIDTHS

FRAMES = 3


def shapes(config, height, width):
    """Of a network's skips and middle, written out from its layout."""
    out, channels = [(config.model_channels, height, width)], config.model_channels
    for level, blocks in enumerate(config.num_res_blocks):
        channels = config.channel_mult[level] * config.model_channels
        out += [(channels, height, width)] * blocks
        if level + 1 < len(config.num_res_blocks):
            height, width = -(-height // 2), -(-width // 2)
            out.append((channels, height, width))
    return [*out, (channels, height, width)]


@pytest.fixture
def residuals(pack):
    """Random residuals for the miniature `name`."""

    def make(name, frames=FRAMES, size=(8, 8), seed=31):
        generator = torch.Generator().manual_seed(seed)
        controls = [torch.randn(frames, *shape, generator=generator) for shape in shapes(SMALL[name], *size)]
        return pack("unet").ControlResiduals(tuple(controls))

    return make


@pytest.fixture
def apply(node):
    def apply(conds, residuals, strength=1.0, start=0.0, end=1.0, **options):
        return run_node(
            node("TemporalUNetApplyControlNetResiduals"), *conds, strength=strength, start_percent=start, end_percent=end,
            residuals=residuals, **options,
        )

    return apply


@pytest.fixture
def compute(node):
    def compute(model, net, positive, images, latent=None, **options):
        latent = {"samples": torch.zeros(FRAMES, 4, 8, 8)} if latent is None else latent
        return run_node(
            node("TemporalUNetComputeControlNetResiduals"), model, positive, net, images, latent, **options
        )[0]

    return compute


# applied


def recorded(model):
    """A clone of the model, and the list of (call, result) that its network will see in sampling."""
    calls = []

    def keep(apply_model, call):
        arguments = {key: value for key, value in call["c"].items() if key != "control"}
        calls.append((call["input"], call["timestep"], arguments, apply_model(call["input"], call["timestep"], **call["c"])))
        return calls[-1][-1]

    model = model.clone()
    model.set_model_unet_function_wrapper(keep)
    return model, calls


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("name", ["sd1", "sdxl", "svd"])
@pytest.mark.parametrize("strength", [1.0, 0.6, 2.0])
def test_applied_they_are_the_networks_own_controls_and_control_strength(pairs, apply, residuals, name, strength):
    """Against unet.UNetModel called with what the sampler's first step had."""
    pair, stored = pairs(name), residuals(name)
    model, calls = recorded(pair.ours)
    sample(model, *apply(prompts(pair.config), stored, strength), frames=FRAMES, steps=1)
    x, sigma, call, denoised = calls[0]
    sampling, wide = pair.ours.model.model_sampling, sigma.reshape(-1, 1, 1, 1)
    net = unet.load_unet(pair.path)
    out = net(
        x / (wide**2 + 1).sqrt(), sampling.timestep(sigma).float(), call["c_crossattn"], call.get("y"), call.get("c_concat"),
        num_frames=FRAMES, controls=stored.controls, control_strength=strength,
    )
    if name == "svd":
        expected = x / (wide**2 + 1) - out * wide / (wide**2 + 1).sqrt()
    else:
        expected = x - out * wide
    assert relative_error(denoised, expected) <= 1e-5


@pytest.mark.parametrize("name", ["sd1", pytest.param("svd", marks=pytest.mark.slow)])
def test_the_hosts_model_takes_them_too(pairs, apply, residuals, name):
    pair = pairs(name)
    conds = apply(prompts(pair.config), residuals(name), 0.1)
    assert relative_error(run(pair.ours, conds, frames=FRAMES), run(pair.host, conds, frames=FRAMES)) <= 1e-3


@pytest.mark.slow
def test_strength_zero_is_bit_equal_to_none(pairs, apply, residuals):
    pair = pairs("svd")
    conds = prompts(pair.config)
    assert torch.equal(run(pair.ours, apply(conds, residuals("svd"), 0.0), frames=3), run(pair.ours, conds, frames=3))


@pytest.mark.slow
@pytest.mark.one_host
def test_outside_its_steps_it_is_bit_equal_to_none(pairs, apply, residuals):
    pair = pairs("svd")
    conds = prompts(pair.config)
    never = run(pair.ours, apply(conds, residuals("svd"), start=1.0), frames=3)
    assert torch.equal(never, run(pair.ours, conds, frames=3))


def test_of_one_frame_they_serve_all(pairs, apply, residuals, pack):
    pair, one = pairs("svd"), residuals("svd", frames=1)
    each = pack("unet").ControlResiduals(tuple(control.repeat(FRAMES, 1, 1, 1) for control in one.controls))
    made = [run(pair.ours, apply(prompts(pair.config), stored, 0.3), frames=FRAMES) for stored in (one, each)]
    assert torch.equal(*made)


def given_by(conds, pair, x):
    return residuals_of(conds[0][0][1]["control"], pair, x)


def test_frames_and_regions_are_weighed_and_nothing_is_changed(pairs, apply, residuals):
    """Exactly zero where the curve or the mask is; what is stored stays as it was."""
    pair, stored = pairs("svd"), residuals("svd", frames=4)
    before = [control.clone() for control in stored.controls]
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    given = given_by(apply(prompts(pair.config), stored, 0.5, frame_strengths="0.4:0, 0.6:1", mask=mask), pair, x)
    for residual, control in zip(given["output"] + given["middle"], stored.controls, strict=True):
        assert residual[[0, 1, 4, 5]].abs().max() == 0
        middle = residual.shape[-1] // 2
        if middle:
            assert residual[..., middle:].abs().max() == 0
            left = slice(0, max(1, middle - 1))
            assert relative_error(residual[[2, 3, 6, 7]][..., left], 0.5 * control[[2, 3, 2, 3]][..., left]) <= 1e-6
    sample(pair.ours, *apply(prompts(pair.config), stored, 2.0), frames=4)
    assert all(torch.equal(a, b) for a, b in zip(stored.controls, before, strict=True))


@pytest.mark.parametrize("stored_first", [True, False])
def test_chained_with_a_net_they_add_up(pairs, nets, apply, ours, theirs, residuals, stored_first):
    pair, stored, image = pairs("sd1"), residuals("sd1", frames=2), hints(2)
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    conds = prompts(pair.config)
    if stored_first:
        both = theirs(apply(conds, stored, 0.5), nets("sd1"), image)
    else:
        both = apply(theirs(conds, nets("sd1"), image), stored, 0.5)
    given, alone = given_by(both, pair, x), given_by(theirs(conds, nets("sd1"), image), pair, x)
    for place, controls in (("output", stored.controls[:-1]), ("middle", stored.controls[-1:])):
        for residual, net, control in zip(given[place], alone[place], controls, strict=True):
            assert relative_error(residual, net + 0.5 * control.repeat(2, 1, 1, 1)) <= 1e-6


def test_the_same_ones_serve_other_prompts_and_runs(pairs, apply, residuals):
    pair, stored = pairs("sd1"), residuals("sd1", frames=1)
    positive, negative = prompts(pair.config)
    first = run(pair.ours, apply((positive, negative), stored, 0.2))
    run(pair.ours, apply((negative, positive), stored, 0.7))
    assert torch.equal(run(pair.ours, apply((positive, negative), stored, 0.2)), first)


@pytest.mark.slow
@pytest.mark.one_host
def test_of_more_frames_the_first_are_used_and_logged_once(pairs, apply, residuals, pack, caplog):
    pair, longer = pairs("svd"), residuals("svd", frames=FRAMES + 2).controls
    make = pack("unet").ControlResiduals
    first = sample(pair.ours, *apply(prompts(pair.config), make(tuple(control[:FRAMES] for control in longer))), steps=3)
    assert torch.equal(sample(pair.ours, *apply(prompts(pair.config), make(tuple(longer))), steps=3), first)
    [line] = [record.message for record in caplog.records if "the first" in record.message]
    assert line == "Apply ControlNet Residuals: found 5 frames of residuals for 3 frames; the first 3 are used."


def test_they_follow_the_frames_of_context_windows(pairs, node, apply, residuals, pack):
    pair, stored, clip = pairs("svd"), residuals("svd", frames=7), 7
    conds = prompts(pair.config)

    def conds_for(shown):
        return apply(conds, pack("unet").ControlResiduals(tuple(control[shown] for control in stored.controls)), 0.3)

    expected = by_hand(pair.ours, conds_for, clip, 4, 1, anchored())
    latent = {"samples": torch.zeros(clip, 4, 8, 8), "batch_index": list(range(clip)), "steps": 1, "cfg": 2.0}
    result = sample(windows_of(pair.ours, node, 4, 1), *apply(conds, stored, 0.3), **latent)
    assert relative_error(result, expected) <= 1e-4


@pytest.mark.skipif(not hasattr(comfy.controlnet.ControlBase, "deepclone_multigpu"), reason="0.30.0 has multi-GPU clones")
def test_a_multigpu_clone_gives_the_same(pairs, apply, residuals):
    pair = pairs("svd")
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    control = apply(prompts(pair.config), residuals("svd"), 0.5, frame_strengths="0:0.5, 1:1")[0][0][1]["control"]
    clone = control.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    assert control.get_instance_for_device(torch.device("cpu")) is clone and clone.inner is not control.inner
    first, second = residuals_of(control, pair, x), residuals_of(clone, pair, x)
    assert all(torch.equal(a, b) for place in first for a, b in zip(first[place], second[place], strict=True))


def test_their_memory_is_reported_to_the_host(pairs, apply, residuals):
    stored = residuals("svd")
    control = apply(prompts(pairs("svd").config), stored)[0][0][1]["control"]
    numbers = sum(control.numel() for control in stored.controls)
    assert control.inference_memory_requirements(torch.float16) == 2 * 2 * numbers  # both halves, in the UNet's dtype
    assert control.inference_memory_requirements(torch.float32) == 2 * 4 * numbers


# what does not fit


@pytest.mark.parametrize("model, of, words", [
    ("sdxl", "sd1", ["found 13 residuals, expected 10", "9 for the input blocks of SDXL"]),
    ("sd1", "sdxl", ["found 10 residuals, expected 13"]),
    ("svd", "sd1", None),
])
def test_those_of_another_model_are_refused_before_the_network_runs(pairs, apply, residuals, model, of, words):
    """SD 1 and SVD have the same places and widths, so that these fit; only the result would show the mistake."""
    patched, calls = recorded(pairs(model).ours)
    conds = apply(prompts(SMALL[model]), residuals(of))
    if words is None:
        assert torch.isfinite(sample(patched, *conds)).all()
        return
    with pytest.raises(ValueError, match="Apply ControlNet Residuals") as error:
        sample(patched, *conds)
    assert all(word in str(error.value) for word in words) and not calls


@pytest.mark.parametrize("other", [pytest.param("sd2", marks=pytest.mark.slow), "svd"])
def test_computed_ones_know_their_family(pairs, compute, apply, nets, other):
    """These fit by count and widths: SD 1's on another family would give a wrong result without an error."""
    made = compute(pairs("sd1").ours, nets("sd1"), prompts(SMALL["sd1"])[0], hints(1))
    patched, calls = recorded(pairs(other).ours)
    found = "^Apply ControlNet Residuals: the residuals were made for Stable Diffusion 1, the model is Stable"
    with pytest.raises(ValueError, match=found):
        sample(patched, *apply(prompts(SMALL[other]), made))
    assert not calls
    assert torch.isfinite(sample(pairs("sd1").ours, *apply(prompts(SMALL["sd1"]), made))).all()


@pytest.mark.slow
@pytest.mark.one_host
def test_a_plain_list_of_tensors_is_taken(pairs, apply, residuals):
    stored = residuals("svd")
    conds = prompts(SMALL["svd"])
    expected = sample(pairs("svd").ours, *apply(conds, stored))
    for plain in (list(stored.controls), stored.controls):
        assert torch.equal(sample(pairs("svd").ours, *apply(conds, plain)), expected)


@pytest.mark.parametrize("spoil, words", [
    (lambda controls: {"output": controls}, "residuals holds no list of tensors, expected what Compute or Load"),
    (lambda controls: [], "residuals holds no list of tensors, expected what Compute or Load"),
    (lambda controls: [*controls[:3], None, *controls[4:]], "residuals holds no list of tensors, expected what Compute or Load"),
    (lambda controls: [*controls[:3], controls[3][:1], *controls[4:]], r"controls.3 has shape .1, .*as many frames as controls.0"),
    (
        lambda controls: [*controls[:3], controls[3][0], *controls[4:]],
        r"controls.3 has shape .*expected .frames, channels, height, width",
    ),
])
def test_what_is_no_list_of_residuals_is_refused(apply, residuals, spoil, words):
    with pytest.raises(ValueError, match=f"^Apply ControlNet Residuals: .*{words}"):
        apply(prompts(SMALL["svd"]), spoil(list(residuals("svd").controls)))


def test_the_strength_multiplies_in_fp32(pairs, apply, residuals, pack):
    """10 times 20000 is more than fp16 can hold; the UNet here computes in fp32."""
    large = [20000 + control for control in residuals("svd").controls]
    halves = pack("unet").ControlResiduals(tuple(control.half() for control in large))
    control = apply(prompts(SMALL["svd"]), halves, strength=10.0)[0][0][1]["control"]
    x = torch.randn(2 * FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    given = residuals_of(control, pairs("svd"), x)
    for row, control in zip([*given["output"], *given["middle"]], halves.controls, strict=True):
        assert torch.equal(row[:FRAMES], control.float() * 10)


def test_the_first_that_differs_is_named(pairs, apply, residuals, pack):
    stored = list(residuals("svd").controls)
    patched, calls = recorded(pairs("svd").ours)

    def error_of(controls):
        with pytest.raises(ValueError, match="Apply ControlNet Residuals") as error:
            sample(patched, *apply(prompts(SMALL["svd"]), pack("unet").ControlResiduals(tuple(controls))))
        return str(error.value)

    narrow = [*stored[:5], stored[5][:, :7], stored[6][:, :7], *stored[7:]]
    assert "controls.5 has channels [7], expected [64]" in error_of(narrow)
    other_size = residuals("svd", size=(8, 12)).controls
    assert "controls.0 has channels, height and width [32, 8, 12], expected [32, 8, 8]" in error_of(other_size)
    assert not calls


def test_two_sources_are_an_error(nets, apply, residuals):
    with pytest.raises(ValueError, match="found control_net and image and residuals, expected either"):
        apply(prompts(SMALL["sd1"]), residuals("sd1"), control_net=nets("sd1"), image=hints(1))


# computed


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_computed_ones_are_the_nets_at_that_noise_level(pairs, nets, compute, frames):
    """Against the host's net called by hand on the latent with noise at 0.3 of the sampling."""
    pair, net = pairs("sd1"), nets("sd1")
    positive, images = prompts(pair.config)[0], hints(frames)
    latent = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    stored = compute(pair.ours, net, positive, images, {"samples": latent}, percent=0.3, seed=7)
    sampling = pair.ours.model.model_sampling
    sigma = sampling.sigma(torch.tensor(0.7 * 999))
    noise = torch.randn(latent.shape, generator=torch.manual_seed(7))
    x = (0.18215 * latent + sigma * noise) / (sigma**2 + 1) ** 0.5
    expected = net.control_model(
        x=x, hint=images.movedim(-1, 1).expand(FRAMES, -1, -1, -1), timesteps=sampling.timestep(sigma).reshape(1).float(),
        context=positive[0][0].expand(FRAMES, -1, -1),
    )
    expected = [*expected["output"], *expected["middle"]]
    assert len(stored.controls) == len(expected) == 13
    assert max(relative_error(a, b) for a, b in zip(stored.controls, expected, strict=True)) <= 1e-5
    assert stored.about["percent"] == "0.3" and float(stored.about["sigma"]) == pytest.approx(sigma.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["svd", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("percent", [0.0, 0.2])
def test_applied_at_their_own_noise_level_they_equal_the_net(pairs, nets, svd_net, compute, ours, apply, name, percent):
    """One step from the same noise: the vector conditions and the first frame went to the net as in sampling."""
    pair, net = pairs(name), svd_net if name == "svd" else nets("sdxl")
    conds, images = prompts(pair.config), hints(FRAMES)
    sampling = pair.ours.model.model_sampling
    sigma = min(float(sampling.percent_to_sigma(percent)), float(sampling.sigma_max))
    stored = compute(pair.ours, net, conds[0], images, percent=percent, seed=5)

    def step(conditions):
        import comfy.samplers

        latent = torch.zeros(FRAMES, 4, 8, 8)
        noise = torch.randn(latent.shape, generator=torch.manual_seed(5))
        sampler, sigmas = comfy.samplers.ksampler("euler"), torch.tensor([sigma, 0.0])
        return comfy.samplers.sample(
            pair.ours, noise, *conditions, 1.0, "cpu", sampler, sigmas, pair.ours.model_options, latent, disable_pbar=True
        )

    assert relative_error(step(apply(conds, stored, 0.7)), step(ours(conds, net, images, 0.7))) <= 1e-5


def test_the_unet_does_not_run(pairs, nets, compute):
    pair, calls = pairs("sd1"), []
    handle = pair.ours.model.diffusion_model.register_forward_pre_hook(lambda module, args: calls.append(1))
    compute(pair.ours, nets("sd1"), prompts(pair.config)[0], hints(1))
    handle.remove()
    assert not calls


@pytest.mark.slow
def test_the_hosts_model_gives_the_same(nets, pairs, compute):
    pair = pairs("sd1")
    host = host_model(random_weights(SMALL["sd1"]), ROWS["sd1"])
    first, second = (compute(m, nets("sd1"), prompts(pair.config)[0], hints(1)) for m in (pair.ours, host))
    assert all(torch.equal(a, b) for a, b in zip(first.controls, second.controls, strict=True))


def test_longer_clips_are_computed_in_the_models_windows(pairs, svd_net, node, compute):
    """Each frame's is the mean over the windows it lies in; frame 3 lies in both, after an anchor where the host has one."""
    pair, images = pairs("svd"), hints(7)
    positive = prompts(pair.config)[0]

    def alone(shown):
        noised = {"samples": torch.zeros(len(shown), 4, 8, 8), "batch_index": shown}
        return compute(pair.ours, svd_net, positive, images[shown], noised)

    second = [2, 3, 4, 5, 6] if anchored() else [3, 4, 5, 6]
    whole = {"samples": torch.zeros(7, 4, 8, 8), "batch_index": list(range(7))}
    made = compute(windows_of(pair.ours, node, 4, 1), svd_net, positive, images, whole)
    first, last = alone([0, 1, 2, 3]), alone(second)
    for control, a, b in zip(made.controls, first.controls, last.controls, strict=True):
        assert relative_error(control[:2], a[:2]) <= 1e-5
        assert relative_error(control[4:], b[-3:]) <= 1e-5
        assert relative_error(control[3], (a[3] + b[-4]) / 2) <= 1e-5


def test_what_cannot_be_computed_is_reported(pairs, nets, node, compute):
    pair = pairs("sd1")
    positive, negative = prompts(pair.config)
    with pytest.raises(ValueError, match="Compute ControlNet Residuals: this control gives no residuals.*T2I-Adapter"):
        compute(pair.ours, nets("sd1 adapter"), positive, hints(1))
    with pytest.raises(ValueError, match="positive holds 2 prompts, expected 1"):
        compute(pair.ours, nets("sd1"), positive + negative, hints(1))
    with pytest.raises(ValueError, match="^Compute ControlNet Residuals: this ControlNet is for SDXL"):
        compute(pair.ours, nets("sdxl"), positive, hints(1))
    with pytest.raises(ValueError, match="^Compute ControlNet Residuals: percent is NaN, expected a finite number"):
        compute(pair.ours, nets("sd1"), positive, hints(1), percent=float("nan"))
    with pytest.raises(ValueError, match="control_net is empty"):
        compute(pair.ours, None, positive, hints(1))
    late = run_node(node("ConditioningSetTimestepRange"), positive, 0.5, 1.0)[0]
    with pytest.raises(ValueError, match="not used at this noise level"):
        compute(pair.ours, nets("sd1"), late, hints(1), percent=0.2)


@pytest.fixture(scope="module")
def controlnext(pack, tmp_path_factory):
    path = tmp_path_factory.mktemp("controlnext") / "v2.safetensors"
    save_file(controlnexts.tensors(2, WIDTHS[2]), path)
    return pack("nodes.bridge.control.controlnext_control").load_controlnext(str(path))


ORDERS = {"alone": ["controlnext"], "first": ["controlnext", "net"], "last": ["net", "controlnext"]}


@pytest.mark.parametrize("order", ORDERS)
def test_a_controlnext_on_the_positive_is_refused(pairs, svd_net, controlnext, theirs, compute, order):
    """Residuals could not hold its effect; reported before any network runs."""
    pair, conds, calls = pairs("svd"), prompts(SMALL["svd"]), []
    for name in ORDERS[order]:
        conds = theirs(conds, controlnext if name == "controlnext" else svd_net, hints(FRAMES))
    handle = svd_net.control_model.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(ValueError, match="Compute ControlNet Residuals: .* holds a ControlNeXt, .* Connect the positive from"):
        compute(pair.ours, svd_net, conds[0], hints(FRAMES))
    handle.remove()
    assert not calls


def test_a_controlnext_alone_has_no_residuals(pairs, controlnext, compute):
    with pytest.raises(ValueError, match="this control gives no residuals.*a ControlNeXt"):
        compute(pairs("svd").ours, controlnext, prompts(SMALL["svd"])[0], hints(FRAMES))


def test_a_cancel_ends_it(pairs, nets, compute):
    import comfy.model_management as management

    pair = pairs("sd1")
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        compute(pair.ours, nets("sd1"), prompts(pair.config)[0], hints(1))
    assert len(compute(pair.ours, nets("sd1"), prompts(pair.config)[0], hints(1)).controls) == 13


# saved and loaded


@pytest.fixture
def saved(node, residuals):
    """(residuals, where Save put them)."""
    import folder_paths
    from comfy_api.latest import io

    stored = residuals("svd")
    prompt = {"hidden_inputs": {io.Hidden.prompt: {"1": {}}, io.Hidden.extra_pnginfo: {"workflow": {"nodes": []}}}}
    made = node("TemporalUNetSaveControlNetResiduals").PREPARE_CLASS_CLONE(prompt).execute(stored, "residuals/test")
    (saved_as,) = made.ui["residuals"]
    return stored, saved_as, f"{folder_paths.get_output_directory()}/{saved_as['subfolder']}/{saved_as['filename']}"


def test_saved_and_loaded_they_are_the_same(node, saved):
    stored, saved_as, path = saved
    name = f"{saved_as['subfolder']}/{saved_as['filename']} [output]"
    load = node("TemporalUNetLoadControlNetResiduals")
    assert load.validate_inputs(name) is True
    back = run_node(load, name)[0]
    assert all(torch.equal(a, b) for a, b in zip(back.controls, stored.controls, strict=True))
    with safe_open(path, framework="pt") as file:
        assert list(sorted(file.keys(), key=len))[:2] == ["controls.0", "controls.1"]
        metadata = file.metadata()
    assert metadata["controls"] == "13" and metadata["temporal_unet.version"]
    assert metadata["prompt"] == '{"1": {}}' and metadata["workflow"] == '{"nodes": []}'


def test_the_input_folders_files_are_offered_and_distinguished_by_content(node):
    import folder_paths

    path = f"{folder_paths.get_input_directory()}/some.safetensors"
    load = node("TemporalUNetLoadControlNetResiduals")
    prints = []
    for value in (0.0, 1.0):
        save_file({"controls.0": torch.full((1, 4, 2, 2), value)}, path)
        prints.append(load.fingerprint_inputs("some.safetensors"))
    assert "some.safetensors" in load.define_schema().inputs[0].options
    assert prints[0] != prints[1] == load.fingerprint_inputs("some.safetensors")
    assert "'none.safetensors' is not in the input folder" in load.validate_inputs("none.safetensors")


def test_a_bad_file_is_an_error_that_names_node_and_file(node):
    import folder_paths

    save_file({"controls.0": torch.full((1, 4, 2, 2), float("nan"))}, f"{folder_paths.get_input_directory()}/bad.safetensors")
    with pytest.raises(ValueError, match="Load ControlNet Residuals: bad.safetensors: controls.0 holds NaN"):
        run_node(node("TemporalUNetLoadControlNetResiduals"), "bad.safetensors")
