"""UNet Feature Cache against its formula, written as patches on the host's own network, which computes every block."""

import copy
import logging
import re
import sys
import weakref

import comfy.model_management as management
import pytest
import torch

from support.families import relative_error
from support.oracle import SMALL, TWO_LEVELS, Pair, controlnet, hints, prompts, run_node, sample

NODE = "TemporalUNetFeatureCache"
WINDOWS = (2, 1, "standard_static", 1, False, "pyramid", 0, False)  # of 2 frames, of which 1 is shared


@pytest.fixture(scope="module")
def pairs(pack, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("cache"), {}

    def pair(name):
        if name not in made:
            made[name] = Pair(pack, folder, name, config=TWO_LEVELS if name == "svd" else None)
        return made[name]

    return pair


@pytest.fixture
def cached(node):
    return lambda model, threshold=0.3, *more: run_node(node(NODE), model, threshold, *more)[0]


@pytest.fixture
def said(caplog):
    """What each run said: (calls in full, calls)."""
    caplog.set_level(logging.INFO)
    return lambda: [tuple(map(int, found)) for found in
                    re.findall(r"UNet Feature Cache: (\d+) of (\d+) network calls", "\n".join(caplog.messages))]


class Formula:
    """The cache as patches of the host's network: each row of the batch is a branch of its own."""

    def __init__(self, config, threshold, depth=2):
        self.threshold, self.first, self.last = threshold, depth - 1, config.num_skips - depth
        self.branches, self.sigma, self.asked = {}, None, {}
        self.full = self.calls = 0

    def on(self, model):
        model = model.clone()
        model.set_model_input_block_patch_after_skip(self.enter)
        model.set_model_output_block_patch(self.leave)
        return model

    def enter(self, h, options):
        if options["block"] == ("input", self.first):
            sigma = options["sigmas"][0].item()
            if sigma != self.sigma:
                self.sigma, self.asked = sigma, {}
            window = options.get("context_window")
            self.now = []
            for uuid, entered in zip(options["uuids"], h.chunk(len(options["uuids"])), strict=True):
                branch = uuid, None if window is None else tuple(window.index_list)
                times = self.asked[branch] = self.asked.get(branch, 0) + 1
                state = self.branches.setdefault((*branch, times), {"points": []})
                thin = entered[..., ::2, ::2]
                full = not state["points"] or (thin - state["entered"]).norm() / state["entered"].norm() > self.threshold
                if full:
                    state["entered"] = thin.clone()
                self.full, self.calls = self.full + bool(full), self.calls + 1
                self.now.append((state["points"], full))
        return h

    def leave(self, h, skip, options):
        if options["block"] != ("output", self.last):
            return h, skip
        x = torch.tensor(self.sigma).log().item()
        rows = []
        for (points, full), row in zip(self.now, h.chunk(len(self.now)), strict=True):
            if full:
                points.append((x, row.clone()))
            elif len(points) > 1:
                (x0, older), (x1, newer) = points[-2:]
                row = older + (x - x0) / (x1 - x0) * (newer - older)
            else:
                row = points[-1][1]
            rows.append(row)
        return torch.cat(rows), skip


def as_is(model, node):
    return model


def perturbed(model, node):
    """A guidance that asks a second time for the same branch at the same noise level."""
    return run_node(node("PerturbedAttentionGuidance"), model, 2.0)[0]


def windowed(model, node):
    return run_node(node("ContextWindowsManual"), model, *WINDOWS)[0]


def freeu(model, node):
    return run_node(node("FreeU"), model, 1.3, 1.4, 0.9, 0.2)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "threshold", "depth", "patch", "options"), [
    ("svd", 0.3, 2, as_is, {}),
    ("sd1_tiny", 0.3, 2, windowed, {"frames": 3, "size": (4, 4)}),
    *(pytest.param(*each, marks=pytest.mark.one_host) for each in (
        ("sd1", 0.3, 3, as_is, {"controlled": True}),
        ("sd2", 0.5, 4, freeu, {}),
        ("sdxl", 0.3, 1, as_is, {}),
        ("sd1", 0.3, 2, perturbed, {}),
        ("sd1_tiny", 0.3, 2, as_is, {"sampler": "heun"}),
        ("sd1_tiny", 0.3, 2, as_is, {"sampler": "dpmpp_2s_ancestral"}),
    )),
])
def test_a_run_equals_the_formula_on_the_hosts_network(pairs, cached, said, node, name, threshold, depth, patch, options):
    formula, conds = Formula(pairs(name).config, threshold, depth), prompts(SMALL[name])
    if (options := dict(options)).pop("controlled", False):
        conds = run_node(node("ControlNetApplyAdvanced"), *conds, controlnet(name), hints(1), 1.0, 0.0, 1.0)
    options = {"steps": 8, "scheduler": "karras", "cfg": 1.5, "frames": 2, **options}
    results = [sample(model, *conds, **options) for model in (
        cached(patch(pairs(name).ours, node), threshold, depth), formula.on(patch(pairs(name).host, node)))]
    assert relative_error(*results) <= 1e-3
    assert said() == [(formula.full, formula.calls)] and formula.full < formula.calls
    plain = sample(patch(pairs(name).ours, node), *conds, **options)
    assert relative_error(results[0], plain) > 1e-4, "the cache changed nothing"


def short(model, name="sd1_tiny", conds=None, **options):
    return sample(model, *(conds or prompts(SMALL[name])), **{"steps": 4, "frames": 1, "scheduler": "karras", **options})


def test_threshold_0_leaves_the_model_as_it_is(pairs, cached):
    model = pairs("sd1_tiny").ours
    assert torch.equal(short(cached(model, 0.0)), short(model))
    assert torch.equal(short(cached(cached(model), 0.0)), short(model)), "a later node with 0 turns the cache off"


def test_guidance_in_one_batch_equals_guidance_in_two(pairs, cached, monkeypatch):
    model = cached(pairs("sd1_tiny").ours)
    batched = short(model)
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 2**60)
    assert torch.equal(short(model), batched)


def test_runs_one_after_the_other_know_nothing_of_each_other(pairs, cached, said):
    model = cached(pairs("sd1_tiny").ours)
    first, other = short(model), short(model, seed=6)
    assert torch.equal(short(model), first) and torch.equal(short(model, seed=6), other)
    assert said()[0] == said()[2] and said()[1] == said()[3]


def test_options_that_a_pack_copies_in_depth_belong_to_the_same_run(pairs, cached, said):
    model = cached(pairs("sd1_tiny").ours)
    expected, copying = short(model), model.clone()
    copying.set_model_unet_function_wrapper(
        lambda apply_model, call: apply_model(call["input"], call["timestep"], **copy.deepcopy(call["c"])))
    assert torch.equal(short(copying), expected)
    assert said()[0] == said()[1]


@pytest.mark.parametrize("error", [management.InterruptProcessingException, ValueError])
def test_a_run_that_ends_early_leaves_nothing_behind(pairs, cached, pack, monkeypatch, error):
    """A cancel, or an error, in the third step."""
    features = pack("unet.inner_features")
    alive, at, calls = weakref.WeakSet(), features.InnerFeature.at, []

    def watched(self, *args):
        alive.add(self)
        calls.append(self)
        if fails and len(calls) > 5:
            raise error
        return at(self, *args)

    model = cached(pairs("sd1_tiny").ours)
    expected = short(model)
    monkeypatch.setattr(features.InnerFeature, "at", watched)
    fails = True
    with pytest.raises(error):
        short(model)
    calls.clear()
    assert not alive
    fails = False
    assert torch.equal(short(model), expected)
    calls.clear()
    assert not alive


EVER = 1e6  # a threshold that no change passes


@pytest.fixture
def any_threshold(pack):
    module = pack("nodes.bridge.sampling.feature_caching")
    return lambda model, threshold, depth=2, start=0.0, end=1.0: module.with_cache(
        model, module.CacheSettings(threshold, depth, start, end))


@pytest.mark.slow
@pytest.mark.one_host
def test_where_a_controlnet_begins_or_ends_the_step_is_computed_in_full(pairs, any_threshold, said, node):
    positive, negative = run_node(
        node("ControlNetApplyAdvanced"), *prompts(SMALL["sd1"]), controlnet("sd1"), hints(1), 1.0, 0.0, 0.5
    )
    short(any_threshold(pairs("sd1").ours, EVER), "sd1", (positive, negative), cfg=1.0)
    short(any_threshold(pairs("sd1").ours, EVER), "sd1", cfg=1.0)
    assert said() == [(2, 4), (1, 4)]


def test_between_percents_alone_features_are_kept(pairs, any_threshold, said):
    for start, end in ((0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (0.9, 0.95)):
        short(any_threshold(pairs("sd1_tiny").ours, EVER, 2, start, end), steps=10, cfg=1.0, scheduler="normal")
    [whole, after, until] = said()
    assert whole == (1, 10)
    assert after[1] + until[1] == 10 and after[0] == until[0] == 1 and min(after[1], until[1]) >= 4


def test_a_run_without_a_cached_call_says_so(pairs, any_threshold, caplog):
    caplog.set_level(logging.INFO)
    short(any_threshold(pairs("sd1_tiny").ours, EVER, 2, 0.9, 0.95), steps=2)
    assert "nothing was kept: no step lies between" in caplog.text


def test_hooks_whose_strength_changes_compute_the_step_in_full(pack):
    """At a keyframe the weights change, which what enters the inner blocks need not show."""
    run_of = pack("nodes.bridge.model.feature_run").FeatureRun

    class Hook:
        strength = 1.0

    hook, count = Hook(), []
    run = run_of(EVER, 2, 1e9, 0.0, [hook])
    for sigma in (4.0, 3.0, 2.0, 1.0):
        hook.strength = 1.0 if sigma > 2.5 else 0.5
        call = run.call({"uuids": ["a"], "cond_or_uncond": [0], "sigmas": torch.tensor([sigma])}, None, torch.device("cpu"))
        call.inner(torch.ones(1, 1, 2, 2), lambda h, sigma=sigma: count.append(sigma) or h, {"transformer_index": 0})
    assert count == [4.0, 2.0]


@pytest.fixture
def reported(monkeypatch):
    """What the host is told that each run takes besides the weights."""
    asked, load = [], management.load_models_gpu

    def load_models_gpu(*args, memory_required=0, **kwargs):
        asked.append(memory_required)
        return load(*args, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(management, "load_models_gpu", load_models_gpu)
    return asked


def in_our_windows(model, node):
    """Moving windows, of which the first and the last stay where they are."""
    return sys.modules[f"{node('TemporalUNetSVDSampler').__module__.rpartition('.')[0]}.bridge.sampling.windows"].with_windows(
        model, 4, 1, False, False)


@pytest.mark.parametrize(("name", "depth", "windows", "size"), [
    ("svd", 2, as_is, (5, 6)), ("svd", 3, in_our_windows, (4, 4)), ("sd1", 5, windowed, (4, 4)), ("sdxl", 1, as_is, (5, 3)),
])
@pytest.mark.slow
@pytest.mark.one_host
def test_the_features_kept_are_part_of_the_memory_reported(pairs, any_threshold, node, pack, reported, monkeypatch, name, depth,
                                                           windows, size):
    caching, runs = pack("nodes.bridge.sampling.feature_caching"), []
    summary = caching.summary
    monkeypatch.setattr(caching, "summary", lambda run: runs.append(run) or summary(run))
    model = windows(pairs(name).ours, node)
    frames = 8 if windows is in_our_windows else 3
    for each in (model, any_threshold(model, 1e-9, depth)):
        sample(each, *prompts(SMALL[name]), steps=3, cfg=1.5, frames=frames, size=size)
    kept = runs[0].total("most_bytes")
    assert runs[0].total("full") == runs[0].total("calls")
    assert 1 <= (reported[1] - reported[0]) / kept <= 1.1


@pytest.mark.slow
@pytest.mark.one_host
def test_within_a_step_of_several_noise_levels_moving_windows_keep_their_features(pairs, any_threshold, said, node):
    positive, negative = prompts(SMALL["svd"])
    for sampler in ("euler", "dpmpp_2s_ancestral"):
        run_node(
            node("TemporalUNetSVDSampler"), any_threshold(pairs("svd").ours, EVER), positive, negative,
            {"samples": torch.zeros(6, 4, 4, 4)}, 1, 4, 1.0, 1.0, "linear", sampler, "karras", window_frames=3, window_overlap=1,
        )
    (full, calls), (full_of_two, calls_of_two) = said()
    assert calls == 4 * 3 and full == 2 + 4  # the first and the last window stay; one moves between them
    assert calls_of_two == 7 * 3 and full_of_two == full + 1  # that of the first step was not known to return


def test_windows_that_move_do_not_pile_up(pack):
    run = pack("nodes.bridge.model.feature_run").FeatureRun(0.3, 2, 1e9, 0.0)

    class Window:
        def __init__(self, index_list):
            self.index_list = index_list

    for step in range(20):
        window = Window([step, step + 1])
        options = {"uuids": ["a"], "cond_or_uncond": [0], "sigmas": torch.tensor([20.0 - step]), "context_window": window}
        call = run.call(options, None, torch.device("cpu"))
        call.inner(torch.ones(1, 1, 2, 2), lambda h: h, {"transformer_index": 0})
        call.done()
    assert run.total("full") == 20 and run.total("most_bytes") <= 3 * 20


def test_a_negative_with_the_uuid_of_the_positive_has_features_of_its_own(pack):
    """The host gives it a copy of the positive's cond where their areas differ."""
    run = pack("nodes.bridge.model.feature_run").FeatureRun(EVER, 2, 1e9, 0.0)

    def made(side, sigma, value):
        call = run.call({"uuids": ["a"], "cond_or_uncond": [side], "sigmas": torch.tensor([sigma])}, None, torch.device("cpu"))
        return call.inner(torch.ones(1, 1, 2, 2), lambda h: value * h, {"transformer_index": 0})[0, 0, 0, 0].item()

    assert [made(1, 4.0, -1.0), made(0, 4.0, 1.0), made(0, 3.0, 5.0), made(1, 2.0, 5.0)] == [-1.0, 1.0, 1.0, -1.0]


def test_calls_that_lack_the_hosts_marks_are_not_cached(pack):
    run, sigmas = pack("nodes.bridge.model.feature_run").FeatureRun(EVER, 2, 1e9, 0.0), torch.tensor([4.0])
    whole = {"uuids": ["a", "b"], "cond_or_uncond": [1, 0], "sigmas": sigmas}
    assert run.acts(whole, 2)
    assert not run.acts(whole, 1)
    for mark, value in (("uuids", None), ("cond_or_uncond", [0]), ("sigmas", None)):
        assert not run.acts({**whole, mark: value}, 2)


def test_a_run_goes_on_without_the_cache_where_memory_runs_out(pairs, any_threshold, pack, monkeypatch, caplog):
    features, model = pack("nodes.bridge.model.feature_run"), any_threshold(pairs("sd1_tiny").ours, EVER)
    expected, inner, calls = short(pairs("sd1_tiny").ours), features.CachedCall.inner, []

    def runs_out(self, *args):
        calls.append(self)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory (raised by the test)")
        return inner(self, *args)

    monkeypatch.setattr(features.CachedCall, "inner", runs_out)
    assert relative_error(short(model), expected) <= 1e-5
    assert len(calls) == 2 and "UNet Feature Cache: out of memory; the rest of the run goes on without it" in caplog.text


@pytest.mark.slow
@pytest.mark.one_host
def test_a_call_repeated_in_smaller_chunks_counts_once(pairs, cached, said, pack, monkeypatch):
    """Memory runs out in the last output block, behind the inner ones."""
    memory, network = pack("nodes.bridge.model.memory_budget"), pairs("svd").ours.model.diffusion_model
    monkeypatch.setattr(memory, "BUDGETS", (2**25, 2**12))
    options = {"steps": 6, "frames": 3, "scheduler": "karras"}
    expected = sample(cached(pairs("svd").ours), *prompts(SMALL["svd"]), **options)
    block, failed = network.output_blocks[-1][0], []
    forward = type(block).forward

    def once(layer, x, call, *more):
        if layer is block and call.budget == 2**25:
            failed.append(call.budget)
            raise torch.OutOfMemoryError("out of memory (raised by the test)")
        return forward(layer, x, call, *more)

    monkeypatch.setattr(type(block), "forward", once)  # of the class: one of the layer's own would be called as the host calls it
    made = sample(cached(pairs("svd").ours), *prompts(SMALL["svd"]), **options)
    assert failed and relative_error(made, expected) <= 1e-5
    assert said()[0] == said()[1]


@pytest.mark.slow
@pytest.mark.one_host
def test_moved_windows_of_the_sampler_run(pairs, cached, node):
    positive, negative = prompts(SMALL["svd"])
    out = run_node(
        node("TemporalUNetSVDSampler"), cached(pairs("svd").ours), positive, negative, {"samples": torch.zeros(5, 4, 4, 4)},
        1, 3, 1.0, 2.0, "linear", "euler", "karras", window_frames=3, window_overlap=1,
    )[0]["samples"]
    assert torch.isfinite(out).all()


def test_another_loaders_model_is_an_error(pairs, cached):
    with pytest.raises(ValueError, match="UNet Feature Cache: .* UNetModel of another loader, .* Load the file with Load UNet"):
        cached(pairs("sd1_tiny").host)


@pytest.mark.parametrize(("settings", "message"), [
    ((float("nan"),), "threshold is NaN"), ((-0.1,), "threshold is -0.1"), ((0.3, 0), "depth is 0"),
    ((0.3, 6), r"depth is 6, and this model has 6 input .* from 1 to 5"), ((0.3, 2, 0.6, 0.4), "start_percent 0.6 lies after"),
])
def test_settings_that_make_no_sense_are_errors(pairs, cached, settings, message):
    with pytest.raises(ValueError, match=f"UNet Feature Cache: {message}"):
        cached(pairs("sd1_tiny").ours, *settings)


def test_what_is_queued_is_checked(node):
    check = node(NODE).validate_inputs
    assert check(threshold=0.2, start_percent=0.1, end_percent=0.9) is True and check() is True
    assert check(threshold=2.0).startswith("threshold is 2")
    assert check(start_percent=0.9, end_percent=0.1).startswith("start_percent 0.9 lies after")


@pytest.mark.slow
@pytest.mark.one_host
def test_a_compiled_network_takes_no_kept_features(pack):
    """It cannot decide by the values of its activations; a run in which nothing was kept says so."""
    network, features = pack("nodes.bridge.model.host_unet"), pack("nodes.bridge.model.feature_run")
    run = features.FeatureRun(0.3, 2, 1e9, 0.0)
    options = {features.KEY: run, "uuids": ["a"], "cond_or_uncond": [0], "sigmas": torch.tensor([1.0])}
    x = torch.zeros(1, 4, 8, 8)
    assert network._features(options, x) is run
    assert torch.compile(network._features, backend="eager", fullgraph=True)(options, x) is None
    assert "the network is compiled" in pack("nodes.bridge.sampling.feature_caching").summary(run)
