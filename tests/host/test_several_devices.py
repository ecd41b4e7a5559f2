"""Long clips over several devices: windows of several steps at the same time, with the result of one after another."""

import random
import threading
import time

import comfy.model_management as management
import comfy.ops
import comfy.patcher_extension
import pytest
import torch

from support.controls import ours  # noqa: F401  (a fixture)
from support.devices import clone_of, multigpu, one_kernel, with_clones  # noqa: F401  (a fixture among them)
from support.families import relative_error, write_unet
from support.oracle import CPU, fill, hints, prompts, run_node
from support.small import ONE_LEVEL

TOTAL, LENGTH, OVERLAP, STEPS, SIZE = 14, 5, 2, 3, 4
pytestmark = [pytest.mark.slow, multigpu]


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    """Our MODEL of an SVD of one level."""
    path = tmp_path_factory.mktemp("devices") / "svd.safetensors"
    write_unet(path, ONE_LEVEL, metadata={"temporal_unet.head_channels": str(ONE_LEVEL.head_channels)})
    return pack("nodes.bridge.model.unet_loader").load_model(str(path), {})


@pytest.fixture(scope="module")
def svd_net(pack):
    """A ControlNet for it with random weights."""
    bridge = pack("nodes.bridge.control.svd_control")
    config = pack("unet").ControlNetConfig(ONE_LEVEL, 3, (4, 6, 8, 10))
    net = bridge.SVDControlNet(config, operations=comfy.ops.disable_weight_init, dtype=torch.float32)
    return bridge.SVDControl(fill(net, 13), load_device=CPU)


@pytest.fixture(scope="module")
def on_devices(svd):
    """Our MODEL with so many clones, each of which the host takes to be on a device of its own."""
    clones = []

    def model(count):
        while len(clones) < count - 1:
            clones.append(clone_of(svd, len(clones)))
        return with_clones(svd, clones[:count - 1])

    return model


@pytest.fixture
def run(node):
    def run(model, frames=TOTAL, sampler="euler", latent=None, conds=None, steps=STEPS, guidance="linear", seed=5, **options):
        options = {"window_frames": LENGTH, "window_overlap": OVERLAP, **options}
        own = {name: options.pop(name) for name in ("guidance_curve", "takes", "denoise") if name in options}
        options = run_node(node("TemporalUNetVideoOptions"), **options)[0]
        latent = {"samples": torch.zeros(frames, 4, SIZE, SIZE), **(latent or {})}
        return run_node(
            node("TemporalUNetSVDSampler"), model, *(conds or prompts(ONE_LEVEL)), latent, seed, steps, 1.0, 2.5, guidance, sampler,
            "karras", **own, options=options,
        )[0]["samples"]

    return run


def in_order(choose):
    """In place of `run_calls`: of the calls that may run, the one with the index that `choose` gives for so many is next."""

    def run(lanes, work, report):
        ready = []
        while True:
            while (call := work.next_call()) is not None:
                ready.append(call)
            if not ready:
                return
            call = ready.pop(choose(len(ready)))
            call.done(call.run(lanes[0]))

    return run


def masked(frames):
    mask = torch.ones(frames, 1, 8 * SIZE, 8 * SIZE)
    mask[[0, 4, 5]] = 0
    mask[7, :, :, :4 * SIZE] = 0
    return {"samples": torch.randn(frames, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(3)), "noise_mask": mask}


LONG = {"frames": 100, "window_frames": 25, "window_overlap": 6}
SHORT = {"frames": 32, "window_frames": 8, "window_overlap": 2}
HALVED = {"guidance": "curve", "guidance_curve": "0:1, 0.5:3, 1:1", "guidance_start": 0.2, "guidance_end": 0.7}
CASES = {
    "32 frames": SHORT, "32 in a loop, with all": {**SHORT, **HALVED, "closed_loop": True, "latent": masked(32), "control": True},
    "100 in a loop": {**LONG, "closed_loop": True},
    "100 with all, ddim": {**LONG, **HALVED, "latent": masked(100), "control": True, "sampler": "ddim"},
    "without overlap": {"window_overlap": 0}, "images of the step before": {**SHORT, "hand_over": "previous step"},
}


@pytest.mark.parametrize("case", CASES)
def test_windows_of_several_steps_at_a_time_make_what_one_step_after_another_makes(
    svd, svd_net, on_devices, run, ours, pack, monkeypatch, case  # noqa: F811
):
    settings = dict(CASES[case])
    if settings.pop("control", False):
        settings["conds"] = ours(prompts(ONE_LEVEL), svd_net, hints(settings["frames"], size=8 * SIZE), 0.7)
    expected = run(svd, **settings)
    results = [run(on_devices(count), **settings) for count in (2, 4)]
    wavefront = pack("nodes.bridge.sampling.wavefront")
    on_lanes = wavefront.run_calls
    one_lane = lambda lanes, work, report: on_lanes(lanes[:1], work)  # noqa: E731
    for order in (one_lane, in_order(lambda count: count - 1), in_order(random.Random(2).randrange)):
        monkeypatch.setattr(wavefront, "run_calls", order)
        results.append(run(on_devices(2), **settings))
    assert relative_error(results[0], expected) <= 1e-5
    assert all(torch.equal(result, results[0]) for result in results[1:])
    if "conds" in settings:
        assert relative_error(run(svd, **{**settings, "conds": None}), expected) > 1e-2, "the control did nothing"


@pytest.mark.parametrize("hand_over", ["this step", "previous step"])
def test_with_images_of_the_step_before_all_windows_of_a_step_may_run_at_once(on_devices, run, pack, monkeypatch, hand_over):
    ready = []
    monkeypatch.setattr(pack("nodes.bridge.sampling.windows"), "run_calls", in_order(lambda count: ready.append(count) or 0))
    run(on_devices(2), **SHORT, sampler="dpmpp_2m", hand_over=hand_over)
    calls = len(ready) // STEPS  # both branches of each window
    begun = [ready[step * calls] for step in range(STEPS)]
    assert begun == [2, *[calls if hand_over == "previous step" else 2] * (STEPS - 1)]  # both are given an image here


@pytest.fixture
def counted(on_devices):
    """(model on two devices, calls): how often the network was called on each. `on_call(device, calls)` is asked at each call."""
    handles = []

    def counted(on_call=lambda device, calls: None):
        model, calls = on_devices(2), [0, 0]
        networks = model.model.diffusion_model, model.get_additional_models_with_key("multigpu")[0].model.diffusion_model

        def count(device):
            def hook(module, args):
                calls[device] += 1
                on_call(device, calls)
            return hook

        handles.extend(network.register_forward_pre_hook(count(device)) for device, network in enumerate(networks))
        return model, calls

    yield counted
    for handle in handles:
        handle.remove()


def test_both_devices_work_and_other_samplers_wait_at_the_end_of_each_step(svd, run, counted):
    model, calls = counted(lambda device, calls: time.sleep(0.02))  # of a call as long on both, whoever else is at work
    run(model, **SHORT)
    windows = sum(calls) / 2 / STEPS  # both branches of each
    assert min(calls) >= 0.4 * sum(calls) and windows == int(windows)
    calls[:] = [0, 0]
    run(model)
    before = list(calls)
    result = run(model, sampler="dpmpp_2m")
    assert min(now - then for now, then in zip(calls, before, strict=True)) >= sum(before) / 4
    assert relative_error(result, run(svd, sampler="dpmpp_2m")) <= 1e-4  # both branches by themselves


def test_an_error_of_a_device_ends_the_run_and_the_next_one_is_right(run, counted):
    expected = None

    def fail(device, calls):
        if device == 1 and calls[1] == 3 and expected is not None:
            raise ZeroDivisionError("of the second device")

    model, calls = counted(fail)
    expected = run(model)
    calls[1] = 0
    with pytest.raises(ZeroDivisionError, match="of the second device"):
        run(model)
    assert threading.active_count() < 30 and not [t for t in threading.enumerate() if t.name.startswith("temporal-unet-lane")]
    assert torch.equal(run(model), expected)


def test_a_cancel_ends_the_run_within_the_calls_that_are_out(run, counted):
    model, calls = counted(lambda device, calls: management.interrupt_current_processing(sum(calls) == 4))
    with pytest.raises(management.InterruptProcessingException):
        run(model)
    assert sum(calls) <= 4 + 2
    management.interrupt_current_processing(False)


@pytest.mark.parametrize("what", ["feature cache", "wrapper", "post cfg"])
def test_what_keeps_state_is_called_in_order(svd, on_devices, run, node, caplog, what):
    steps = []

    def recorded(executor, model, conds, x, timestep, options):
        steps.append(float(timestep[0]))
        return executor(model, conds, x, timestep, options)

    def added(model):
        if what == "feature cache":
            return run_node(node("TemporalUNetFeatureCache"), model, 0.3, 1, 0.0, 1.0)[0]
        model = model.clone()
        if what == "post cfg":
            model.set_model_sampler_post_cfg_function(lambda args: steps.append(float(args["sigma"][0])) or args["denoised"])
        else:
            model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "mine", recorded)
        return model

    expected = run(added(svd))
    steps.clear()
    assert relative_error(run(added(on_devices(2))), expected) <= 1e-4
    assert steps == sorted(steps, reverse=True)
    said = {"feature cache": "since UNet Feature Cache keeps", "wrapper": "since the wrapper mine keeps", "post cfg": ""}
    assert ("one after another" in caplog.text) == (what != "post cfg") and said[what] in caplog.text


OF_TAKES = {
    "windows in a loop, with all": {**HALVED, "closed_loop": True, "latent": masked(TOTAL), "control": True, "sampler": "ddim"},
    "no windows, from a latent": {"frames": LENGTH, "latent": {"samples": masked(TOTAL)["samples"][:LENGTH]}, "denoise": 0.5},
    "no windows, with a ControlNet": {"frames": LENGTH, "control": True},
    "a sampler with noise in each step": {"frames": LENGTH, "sampler": "euler_ancestral"},
}


@pytest.mark.parametrize("case", OF_TAKES)
def test_takes_are_runs_of_their_own_on_any_number_of_devices(svd, svd_net, on_devices, run, ours, case):  # noqa: F811
    settings = dict(OF_TAKES[case])
    if settings.pop("control", False):
        settings["conds"] = ours(prompts(ONE_LEVEL), svd_net, hints(settings.get("frames", TOTAL), size=8 * SIZE), 0.7)
    alone = [run(on_devices(2), seed=5 + take, **settings) for take in range(2)]
    assert relative_error(alone[1], run(svd, seed=6, **settings)) <= 1e-4  # both branches by themselves
    for devices in (2, 4):
        assert torch.equal(run(on_devices(devices), takes=2, **settings), torch.cat(alone))


def test_takes_fill_what_one_leaves_idle_and_few_are_begun(run, on_devices, pack, monkeypatch):
    """A clip of one window has work for two devices. More takes than twice the devices are not begun before others have ended."""
    sampler = pack("nodes.bridge.sampling.takes_sampler")
    at_work, begun = [0], []

    def in_turns(lanes, work, report):
        """All lanes work at the same pace."""
        while calls := [call for call in (work.next_call() for _ in lanes) if call is not None]:
            at_work.append(len(calls))
            begun.append(len(work.running))
            for call in calls:
                call.done(call.run(lanes[0]))

    monkeypatch.setattr(sampler, "run_calls", in_turns)
    run(on_devices(4), frames=LENGTH, takes=4, steps=2)
    assert at_work[1:] == [4] * 4
    monkeypatch.setattr(sampler, "BEGUN", 0.5)
    begun.clear()
    run(on_devices(4), frames=LENGTH, takes=4, steps=2)
    assert max(begun) == 2


def test_what_looks_at_a_whole_run_sees_one_take_at_a_time(svd, on_devices, run):
    shapes = []

    def recorded(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        shapes.append(out.shape[0])
        return out

    model = on_devices(2).clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "mine", recorded)
    made = run(model, frames=LENGTH, takes=2, steps=1)
    assert shapes == [LENGTH, LENGTH] and made.shape[0] == 2 * LENGTH


def test_the_latent_says_on_which_devices_it_was_sampled(svd, on_devices, node):
    latent, about = {"samples": torch.zeros(2, 4, SIZE, SIZE)}, []
    for model in (on_devices(2), svd):
        settings = (5, 1, 1.0, 1.0, "linear", "euler", "karras")
        latent = run_node(node("TemporalUNetSVDSampler"), model, *prompts(ONE_LEVEL), latent, *settings)[0]
        about.append([str(device) for device in latent["temporal_unet.devices"]])
    assert about == [["cpu", "cpu:0"], []]
