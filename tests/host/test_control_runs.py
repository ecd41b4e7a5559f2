"""What a run leaves behind for the next one that has the same conditioning, also where it ended by an error or a cancel."""

import comfy.controlnet
import comfy.model_management as management
import pytest
import torch
from comfy.patcher_extension import CallbacksMP

from support.controls import nets, ours, pairs, svd_net  # noqa: F401  (fixtures among them)
from support.oracle import hints, prompts, run_node, sample

CLIP = 7
OUT_OF_MEMORY = torch.OutOfMemoryError("out of memory (raised by the test)")
MIB = 2**20


def layer_of(net):
    """The first layer that a net's control images go through, or None where the host only resizes them."""
    if hasattr(net, "t2i_model"):
        return net.t2i_model
    return getattr(net.control_model, "controlnet_cond_embedding", None)


def failing(net, call, how):
    """Makes this call of the preparation of control images fail; a function that ends it."""
    calls = []

    def fail(*_):
        calls.append(None)
        if len(calls) == call:
            if how == "cancel":
                management.interrupt_current_processing()
                management.throw_exception_if_processing_interrupted()
            raise OUT_OF_MEMORY

    return layer_of(net).register_forward_pre_hook(fail).remove


def in_windows(node, model, conds):
    """The latent of a clip in the sampler's own windows (video), or in the host's (images)."""
    if model.model.model_config.unet_config.get("use_temporal_attention"):
        latent = {"samples": torch.zeros(CLIP, 4, 8, 8)}
        arguments = (latent, 5, 2, 1.0, 2.0, "linear", "euler", "karras")
        return run_node(node("TemporalUNetSVDSampler"), model, *conds, *arguments, window_frames=4, window_overlap=2)[0]["samples"]
    windows = run_node(node("ContextWindowsManual"), model, 4, 1, "standard_static", 1, False, "pyramid", 0, False)[0]
    return sample(windows, *conds, frames=CLIP)


@pytest.fixture
def net_of(nets, svd_net):
    return lambda name: svd_net if name == "svd" else nets(name)


@pytest.mark.parametrize("how", ["cancel", pytest.param("out of memory", marks=pytest.mark.one_host)])
@pytest.mark.parametrize("call", [pytest.param(1, marks=pytest.mark.one_host), 2])
@pytest.mark.parametrize("name, net", [("svd", "svd"), ("sd1", "sd1 adapter")])
@pytest.mark.slow
def test_a_run_after_a_failed_one_is_as_the_first(pairs, net_of, node, ours, name, net, call, how):
    model, net = pairs(name).ours, net_of(net)
    conds = prompts(pairs(name).config)
    expected = in_windows(node, model, ours(conds, net, hints(CLIP)))
    controlled = ours(conds, net, hints(CLIP))
    stop = failing(net, call, how)
    with pytest.raises(management.InterruptProcessingException if how == "cancel" else torch.OutOfMemoryError):
        in_windows(node, model, controlled)
    stop()
    assert torch.equal(in_windows(node, model, controlled), expected)


@pytest.mark.slow
def test_nothing_prepared_stays_after_a_failed_run(pairs, node, ours, svd_net):
    model = pairs("svd").ours
    controlled = ours(prompts(pairs("svd").config), svd_net, hints(CLIP), mask=torch.rand(CLIP, 64, 64))
    control = controlled[0][0][1]["control"]
    prepared = []
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, "test", lambda patcher: None)

    def fail(*_):
        prepared.append(control.inner.cond_hint is not None and control.hints.made)
        if len(prepared) == 2:
            raise OUT_OF_MEMORY

    handle = model.model.diffusion_model.out.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        in_windows(node, model, controlled)
    handle.remove()
    assert prepared[1], "the run failed before anything was prepared"
    assert control.inner.cond_hint is None and not control.hints.made and control.weights is None
    assert list(model.callbacks[CallbacksMP.ON_CLEANUP]) == ["test"], "a callback of the run stays on the MODEL"
    model.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, "test")


@pytest.mark.slow
def test_a_t2i_adapters_residuals_leave_the_device_after_a_run(pairs, node, ours, nets):
    controlled = ours(prompts(pairs("sd1").config), nets("sd1 adapter"), hints(CLIP))
    in_windows(node, pairs("sd1").ours, controlled)
    adapter = controlled[0][0][1]["control"].inner
    assert adapter.control_input is None and adapter.cond_hint is None


@pytest.mark.slow
def test_stored_residuals_leave_the_device_after_a_failed_run(pairs, node, ours, svd_net):
    model = pairs("svd").ours
    conds = prompts(pairs("svd").config)
    latent = {"samples": torch.zeros(3, 4, 8, 8)}
    [residuals] = run_node(
        node("TemporalUNetComputeControlNetResiduals"), model, conds[0], svd_net, hints(3), latent
    )
    stored = ours(conds, None, None, residuals=residuals)
    control = stored[0][0][1]["control"].inner
    seen = []

    def fail(*_):
        seen.append(control.ready)
        raise OUT_OF_MEMORY

    handle = model.model.diffusion_model.out.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        sample(model, *stored)
    handle.remove()
    assert seen[0] is not None and control.ready is None


@pytest.mark.slow
def test_images_are_embedded_one_by_one(pairs, ours, svd_net):
    """So that an image has the same bits whatever others a device embeds, and takes the least memory."""
    rows = []
    handle = layer_of(svd_net).register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    sample(pairs("svd").ours, *ours(prompts(pairs("svd").config), svd_net, hints(CLIP)), frames=CLIP)
    handle.remove()
    assert rows == [1] * CLIP


# contexts of other packs, and the host's own apply node


def shown(rows):
    """A hook that notes which control images a hint net is given: the first number of each."""
    return lambda module, args: rows.extend(round(float(image[0, 0, 0]), 3) for image in args[0])


def ramp(count):
    """Control images that differ in brightness alone: index / 10."""
    return (torch.arange(count) / 10).reshape(-1, 1, 1, 1).expand(-1, 64, 64, 3)


def scaled(indices):
    return [round(index / 10 * 2 - 1, 3) for index in indices]


def call(control, pair, frames, options, **attributes):
    """One call of a control on so many frames, as a sampler makes it; `attributes` are set before it, as other packs do."""
    model = pair.ours.model
    control.pre_run(model, model.model_sampling.percent_to_sigma)
    for name, value in attributes.items():
        assert hasattr(control, name), f"other packs refuse a control without {name}"
        setattr(control, name, value)
    x = torch.zeros(2 * frames, 4, 8, 8)
    cond = {"c_crossattn": torch.zeros(len(x), 7, 1024), "y": torch.zeros(len(x), 768), "c_concat": torch.zeros_like(x)}
    out = control.get_control(x, torch.ones(len(x)), cond, 2, {"cond_or_uncond": [0, 1], **options})
    control.cleanup()
    return out


@pytest.mark.parametrize("node_id", ["TemporalUNetApplyControlNetResiduals", "ControlNetApplyAdvanced"])
@pytest.mark.parametrize("by", ["attributes", "ad_params"])
def test_images_follow_the_contexts_of_other_packs(pairs, node, svd_net, node_id, by):
    pair, rows = pairs("svd"), []
    conds = prompts(pair.config)
    controlled = run_node(node(node_id), *conds, svd_net, ramp(8), 0.7, 0.0, 1.0)
    control = controlled[0][0][1]["control"]
    handle = layer_of(svd_net).register_forward_pre_hook(shown(rows))
    context = {"sub_idxs": [5, 2, 7], "full_length": 8, "context_length": 3}
    if by == "attributes":
        call(control, pair, 3, {}, sub_idxs=[5, 2, 7], full_latent_length=8, context_length=3)
    else:
        call(control, pair, 3, {"ad_params": context})
    assert control.sub_idxs is None, "what was set for a context outlives its run"
    call(control, pair, 8, {"ad_params": {**context, "sub_idxs": None}})
    handle.remove()
    assert rows == [*scaled([5, 2, 7]), *scaled(range(8))]


@pytest.mark.parametrize("count, expected", [(2, [0, 1, 0, 1, 0]), (5, range(5)), (9, range(5)), (1, [0])])
def test_in_the_hosts_node_images_are_repeated_or_cut_as_in_the_hosts_nets(pairs, node, svd_net, count, expected):
    from comfy.controlnet import broadcast_image_to

    frames, pair, rows = 5, pairs("svd"), []
    [[_, extra]], _ = run_node(node("ControlNetApplyAdvanced"), *prompts(pair.config), svd_net, ramp(count), 0.7, 0.0, 1.0)
    handle = layer_of(svd_net).register_forward_pre_hook(shown(rows))
    call(extra["control"], pair, frames, {})
    handle.remove()
    assert rows == scaled(expected)
    if count > 1:
        as_host = broadcast_image_to(torch.arange(count), 2 * frames, 2)
        assert as_host.tolist() == [*expected, *expected]


@pytest.mark.slow
def test_in_the_hosts_node_images_follow_the_hosts_windows(pairs, node, ours, svd_net):
    pair = pairs("svd")
    conds = prompts(pair.config)
    windows = run_node(node("ContextWindowsManual"), pair.ours, 4, 1, "standard_static", 1, False, "pyramid", 0, False)[0]
    theirs = run_node(node("ControlNetApplyAdvanced"), *conds, svd_net, hints(CLIP), 0.7, 0.0, 1.0)
    result = sample(windows, *theirs, frames=CLIP)
    assert torch.equal(result, sample(windows, *ours(conds, svd_net, hints(CLIP)), frames=CLIP))


def test_the_apply_node_of_advanced_controlnet_takes_our_control_and_its_own_settings_are_refused(svd_net):
    """It takes a control with `sub_idxs` for one of its own: what its node then does and asks."""
    control = svd_net.copy().set_cond_hint(hints(1), 0.7, (0.0, 1.0), None)
    control.disarm()
    control.verify_all_weights()
    assert not (control.require_vae or control.allow_condhint_latents or control.postpone_condhint_latents_check)
    settings = {
        "timestep_kf": lambda: control.set_timestep_keyframes(object()),
        "latent_kf_override": lambda: setattr(control, "latent_keyframe_override", object()),
        "weights_override": lambda: setattr(control, "weights_override", object()),
        "mask_optional": lambda: control.set_cond_hint_mask(torch.ones(1, 8, 8)),
    }
    for name, use in settings.items():
        with pytest.raises(ValueError, match=f"{name} acts on .* or use Apply ControlNet Residuals"):
            use()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_that_are_kept_lie_in_memory_as_the_net_made_them(pack, layout):
    """Convolutions of another layout differ in their last bits: a result would depend on the order of windows."""
    net, kept = comfy.controlnet.ControlBase(), pack("nodes.bridge.control.kept_hints").KeptHints(torch.zeros(4, 3, 8, 8))
    net.cond_hint = made = torch.rand(2, 3, 8, 8).contiguous(memory_format=layout)
    kept.keep(net, [1, 2], torch.Size((8, 8)))
    assert kept.give(net, [1, 2], torch.Size((8, 8)), 1, "cpu")
    assert torch.equal(net.cond_hint, made) and net.cond_hint is not made and net.cond_hint.stride() == made.stride()
