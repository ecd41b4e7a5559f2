"""Controls of a MODEL whose network is called on the workers of a real Ray."""

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import comfy.controlnet
import comfy.ops
import pytest
import torch
from safetensors.torch import save_file

from support import controlnexts
from support.families import relative_error
from support.oracle import CPU, SMALL, Pair, fill, hints, prompts, run_node
from support.pools import called, calls_here, on_call, pooled, processes  # noqa: F401  (fixtures)
from support.public_controlnets import public_tensors
from support.published import WIDTHS

FRAMES, LENGTH, OVERLAP, STEPS = 5, 3, 1, 2
pytestmark = [pytest.mark.slow, pytest.mark.one_host]


@pytest.fixture(scope="module")
def pair(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("pool"), "svd")


@pytest.fixture
def run(node):
    def run(model, conds, overlap=OVERLAP):
        return run_node(
            node("TemporalUNetSVDSampler"), model, *conds, {"samples": torch.zeros(FRAMES, 4, 8, 8)}, 5, STEPS, 1.0, 2.5, "linear",
            "euler", "karras", window_frames=LENGTH, window_overlap=overlap,
        )[0]["samples"]

    return run


@pytest.fixture
def apply(node):
    def apply(conds, net, image, strength=0.7, start=0.0, end=1.0, **options):
        return run_node(node("TemporalUNetApplyControlNetResiduals"), *conds, net, image, strength, start, end, **options)

    return apply


@pytest.fixture(scope="module")
def controlnexts_of(pack, tmp_path_factory):
    """The CONTROL_NETs of both versions."""
    folder, made = tmp_path_factory.mktemp("controlnext"), {}
    for version, width in WIDTHS.items():
        save_file(controlnexts.tensors(version, width), folder / f"{version}.safetensors")
        made[version] = pack("nodes.bridge.control.controlnext_control").load_controlnext(str(folder / f"{version}.safetensors"))
    return made


def masks(count):
    return torch.rand(count, 24, 24, generator=torch.Generator().manual_seed(7))


def test_controlnexts_act_on_workers_as_here(pair, pooled, run, apply, calls_here, controlnexts_of):
    """Both versions in a chain, with a curve and a mask, on one worker and on two."""
    conds = apply(prompts(pair.config), controlnexts_of[1], hints(FRAMES), 2.0, frame_strengths="0:1, 1:0.2", mask=masks(FRAMES))
    conds = apply(conds, controlnexts_of[2], hints(1), end=0.5)
    expected, plain = run(pair.ours, conds), run(pair.ours, prompts(pair.config))
    calls = calls_here(pair.ours)
    one, two = (run(pooled(pair.ours, count)[0], conds) for count in (1, 2))
    assert calls == [] and torch.equal(one, two)
    assert relative_error(two, expected) <= 1e-4 < 1e-2 < relative_error(plain, expected)


class LeavesAPatch(comfy.controlnet.ControlBase):
    """A control of another pack that acts by code in the options of the call that it controls."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        transformer_options["patches"] = {"attn1_output_patch": [lambda x, extra: 0.5 * x]}

    def get_models(self):
        return []


def test_code_that_a_control_leaves_in_a_call_keeps_it_here_or_is_refused(pair, pooled, run, calls_here, caplog):
    conds = [[[cond, {**extra, "control": LeavesAPatch()}]] for [[cond, extra]] in prompts(pair.config)]
    expected = run(pair.ours, conds)
    calls = calls_here(pair.ours)
    assert torch.equal(run(pooled(pair.ours, here=True)[0], conds), expected) and len(calls) >= 2 * STEPS
    assert caplog.text.count("calls with the patches of LeavesAPatch are computed on this machine alone") == 1
    with pytest.raises(ValueError, match=r"Machines \(Ray\): workers do not get the patches of LeavesAPatch\. Take it out"):
        run(pooled(pair.ours)[0], conds)


def halves(network, patch):
    """As Advanced-ControlNet's reference does, when a run has begun: the layer's own forward is another one then."""
    block = network.middle_block[1].transformer_blocks[0]
    forward = block.forward
    patch.setattr(block, "forward", lambda *args, **kwargs: 0.5 * forward(*args, **kwargs))


def hooks(network, patch):
    patch.setitem(network.middle_block[0]._forward_hooks, 0, lambda module, args, out: 0.5 * out)


def tiles(network, patch):
    """As KSamplers that make images tile do, while they sample."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            patch.setattr(layer, "padding_mode", "circular")


def tiles_by_code(network, patch):
    def circular(self, x, weight, bias):
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, 4 * [1], "circular"), weight, bias)

    conv = network.middle_block[0].in_layers[2]
    patch.setattr(conv, "_conv_forward", circular.__get__(conv), raising=False)


def test_calls_that_wait_for_this_machine_leave_it_to_the_one_that_it_computes(
    pair, pooled, run, pack, monkeypatch, request
):
    """They look for a place ten times a second, and when one has ended."""
    conds = [[[cond, {**extra, "control": LeavesAPatch()}]] for [[cond, extra]] in prompts(pair.config)]
    pool_run, looks = pack("nodes.bridge.pool.pool_run").PoolRun, []
    place = pool_run._place
    monkeypatch.setattr(pool_run, "_place", lambda *args: looks.append(1) or place(*args))
    request.addfinalizer(called(pair.ours.model.diffusion_model, lambda: time.sleep(0.2)))
    run(pooled(pair.ours, here=True)[0], conds)
    assert 4 * STEPS < len(looks) < 40 * 4 * STEPS  # calls: two windows, each with both branches


class Computes(comfy.controlnet.ControlBase):
    """A control of the host's kind that adds nothing and notes whether `busy` was set while it computed."""

    def __init__(self, busy):
        super().__init__()
        self.busy, self.seen = busy, []

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        self.seen.append(self.busy.is_set())
        time.sleep(0.02)
        self.seen.append(self.busy.is_set())

    def get_models(self):
        return []


def test_controls_that_compute_here_and_the_network_here_take_turns(pair, pooled, run, monkeypatch):
    layer, busy = pair.ours.model.diffusion_model.input_blocks[0][0], threading.Event()
    call = layer._call_impl

    def slow(*args, **kwargs):
        busy.set()
        time.sleep(0.7)
        try:
            return call(*args, **kwargs)
        finally:
            busy.clear()

    monkeypatch.setitem(vars(layer), "_call_impl", slow)
    control = Computes(busy)
    conds = [[[cond, {**extra, "control": control}]] for [[cond, extra]] in prompts(pair.config)]
    run(pooled(pair.ours, 1, here=True)[0], conds, overlap=0)  # so that all windows may be worked on at once
    assert len(control.seen) >= 2 * 4 * STEPS and not any(control.seen)


@pytest.mark.parametrize("change, named", [
    (halves, "BasicTransformerBlock"), (hooks, "VideoResBlock"), (tiles, "Conv2d"), (tiles_by_code, "Conv2d"),
])
def test_code_that_a_pack_changed_in_the_network_keeps_runs_here_or_is_refused(pair, pooled, run, monkeypatch, change, named):
    network, conds = pair.ours.model.diffusion_model, prompts(pair.config)
    plain = run(pair.ours, conds)
    change(network, monkeypatch)
    expected = run(pair.ours, conds)  # both branches in one call
    assert relative_error(run(pooled(pair.ours, here=True)[0], conds), expected) <= 1e-4 < 1e-3 < relative_error(plain, expected)
    with pytest.raises(ValueError, match=f"workers do not get the changed code of {named}"):
        run(pooled(pair.ours)[0], conds)


@pytest.fixture(scope="module")
def svd_nets(pack, tmp_path_factory):
    """SVD's CONTROL_NETs by name: one of a file, and one without layers over time that no file has."""
    bridge, path = pack("nodes.bridge.control.svd_control"), tmp_path_factory.mktemp("controlnet") / "depth.safetensors"
    save_file(public_tensors(SMALL["svd"]), path, {"temporal_unet.head_channels": "32"})
    config = pack("unet").ControlNetConfig(replace(SMALL["svd"], temporal=False), 3, (4, 6, 8, 10))
    net = bridge.SVDControlNet(config, operations=comfy.ops.disable_weight_init, dtype=torch.float32)
    return {"temporal": bridge.load_svd_controlnet(str(path)), "spatial": bridge.SVDControl(fill(net, 13), load_device=CPU)}


@pytest.fixture
def given(pack, monkeypatch):
    """Counts what workers are given: "networks" with their weights or the path of a file, and control "images"."""
    shared, controls = pack("nodes.bridge.pool.shared_network"), pack("nodes.bridge.pool.sent_controls")
    counts, pieces, images = Counter(), shared.SharedControlNet.pieces, controls.SentControl.images

    def counted_images(control, keys):
        for piece in images(control, keys):
            counts["images"] += len(piece)
            yield piece

    def counted_pieces(network, read):
        counts["networks"] += 1
        return pieces(network, read)

    monkeypatch.setattr(shared.SharedControlNet, "pieces", counted_pieces)
    monkeypatch.setattr(controls.SentControl, "images", counted_images)
    return counts


@pytest.fixture
def nets_called_here(svd_nets):
    """A list with an entry for each call of one of the ControlNets on this machine."""
    calls = []
    ends = [
        called(layer, lambda: calls.append(1))
        for net in svd_nets.values()
        for layer in (net.control_model.input_blocks[0][0], net.control_model.controlnet_cond_embedding)
    ]
    yield calls
    for end in ends:
        end()


@pytest.fixture
def chain(apply, node, pair, svd_nets):
    """Conds with both of SVD's nets, a curve, masks and a range of steps, and stored residuals between them."""
    def chain():
        plain, images = prompts(pair.config), hints(FRAMES)
        stored = run_node(
            node("TemporalUNetComputeControlNetResiduals"), pair.ours, plain[0], svd_nets["spatial"], hints(1, seed=3),
            {"samples": torch.zeros(FRAMES, 4, 8, 8)},
        )[0]
        conds = apply(plain, svd_nets["temporal"], images, frame_strengths="0:1, 1:0.2", mask=masks(FRAMES))
        conds = apply(conds, None, None, 0.3, residuals=stored)
        return apply(conds, svd_nets["spatial"], hints(1), 0.4, end=0.5)

    return chain


def test_svds_controlnets_are_computed_on_workers_as_here(
    pack, pair, pooled, run, chain, svd_nets, calls_here, nets_called_here, given
):
    """On one worker and on two; their weights are given once, and images once a run."""
    conds = chain()
    expected, plain = run(pair.ours, conds), run(pair.ours, prompts(pair.config))
    calls = calls_here(pair.ours)
    nets_called_here.clear()
    two = run(pooled(pair.ours)[0], conds)
    assert relative_error(two, expected) <= 1e-4 < 1e-2 < relative_error(plain, expected)
    assert len(svd_nets) <= given["networks"] <= 2 * len(svd_nets)  # fewer where a worker was so late that it had no calls
    assert FRAMES + 1 <= given["images"] <= 2 * (FRAMES + 1)
    given.clear()
    assert torch.equal(run(pooled(pair.ours, 1)[0], conds), two)
    assert given == {"images": FRAMES + 1} and calls == nets_called_here == []
    shared = pack("nodes.bridge.pool.shared_network").SharedControlNet
    paths = {name: shared(net.control_model_wrapped).spec["path"] for name, net in svd_nets.items()}
    assert paths["temporal"].endswith("depth.safetensors") and paths["spatial"] is None


def test_controlnets_that_take_turns_are_given_once(pair, pooled, run, apply, svd_nets, given):
    """One after another by the range of steps, or one for each branch of guidance."""
    conds = prompts(pair.config)
    first, second = (apply(conds, net, hints(1), 0.5) for net in svd_nets.values())
    by_step = apply(apply(conds, svd_nets["temporal"], hints(1), 0.5, 0.0, 0.4), svd_nets["spatial"], hints(1), 0.5, 0.5)
    pool = pooled(pair.ours, 1)[0]
    run(pool, by_step)
    given.clear()
    for each in (by_step, (first[0], second[1])):
        assert relative_error(run(pool, each), run(pair.ours, each)) <= 1e-4
    assert given["networks"] == 0


def test_a_worker_that_is_killed_is_given_the_controlnets_again(pair, pooled, run, chain, svd_nets, given, on_call, processes):
    conds, pool = chain(), pooled(pair.ours)[0]
    expected, killed = run(pool, conds), processes()[0]
    on_call(pair.ours, 4, lambda: os.kill(killed, signal.SIGKILL))
    assert torch.equal(run(pool, conds), expected)
    processes()
    given.clear()
    assert torch.equal(run(pool, conds), expected)
    assert given["networks"] <= len(svd_nets)  # fewer where it was back, and was given some, before the first run ended


def test_a_call_that_stays_here_or_is_looked_into_computes_controls_here(
    pair, pooled, run, chain, apply, svd_nets, calls_here, nets_called_here
):
    """Bit-equal to a run without a pool."""
    conds = [[[cond, {**extra, "control": LeavesAPatch()}]] for [[cond, extra]] in prompts(pair.config)]
    conds = apply(conds, svd_nets["temporal"], hints(FRAMES), frame_strengths="0:1, 1:0.2", mask=masks(FRAMES))
    expected, calls = run(pair.ours, conds), calls_here(pair.ours)
    assert torch.equal(run(pooled(pair.ours, here=True)[0], conds), expected) and calls

    def looks(apply_model, args):
        control = {place: list(residuals) for place, residuals in args["c"]["control"].items()}
        return apply_model(args["input"], args["timestep"], **{**args["c"], "control": control})

    looking, conds = pair.ours.clone(), apply(prompts(pair.config), svd_nets["temporal"], hints(FRAMES))
    looking.set_model_unet_function_wrapper(looks)
    expected = run(looking, conds)
    calls.clear()
    nets_called_here.clear()
    assert relative_error(run(pooled(looking)[0], conds), expected) <= 1e-4 and nets_called_here and not calls


def test_a_controlnet_whose_code_a_pack_changed_is_computed_here(pair, pooled, run, apply, svd_nets, calls_here, monkeypatch):
    conds = apply(prompts(pair.config), svd_nets["spatial"], hints(FRAMES), frame_strengths="0:1, 1:0.2")
    plain = run(pair.ours, conds)
    tiles(svd_nets["spatial"].control_model, monkeypatch)
    expected, calls = run(pair.ours, conds), calls_here(pair.ours)
    assert relative_error(run(pooled(pair.ours)[0], conds), expected) <= 1e-4 < 1e-3 < relative_error(plain, expected)
    assert not calls
