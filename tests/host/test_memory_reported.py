"""The memory of a video as reported to the host: at load time and in each step, with patches; and that nothing stays behind."""

import gc
import weakref
from unittest.mock import patch

import comfy.model_management as management
import comfy.ops
import comfy.samplers
import pytest
import torch

from support.families import FULL
from support.live import peak_bytes
from support.oracle import TWO_LEVELS, Pair, prompt, prompts, run_node, sample
from unet import activation_bytes

FRAMES, WINDOW = 5, 3
GIB = 2**30


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("reported"), "svd", config=TWO_LEVELS)


@pytest.fixture
def needed(svd, pack):
    """Bytes that one call of the miniature on so many frames needs."""
    return lambda frames, **options: pack("nodes.bridge.model.memory_budget").needed(svd.config, frames, 8, 8, 4, **options)


@pytest.fixture
def reported(svd, monkeypatch):
    """(in full, at least) of each loading for a sampling run, and what is reported for each batch of conditions in a step."""
    loading, steps = [], []
    load, required = management.load_models_gpu, svd.ours.model.memory_required

    def load_models_gpu(*args, memory_required=0, minimum_memory_required=None, **kwargs):
        loading.append((memory_required, minimum_memory_required))
        del steps[:]  # so far they were questions of the loading
        return load(*args, memory_required=memory_required, minimum_memory_required=minimum_memory_required, **kwargs)

    def memory_required(*args, **kwargs):
        steps.append(required(*args, **kwargs))
        return steps[-1]

    monkeypatch.setattr(management, "load_models_gpu", load_models_gpu)
    monkeypatch.setattr(svd.ours.model, "memory_required", memory_required)
    return loading, steps


def run(svd, model, count):
    """The host's sampling with so many conditionings, of which the first is the positive and the second the negative."""
    guider = comfy.samplers.CFGGuider(model)
    conds = {"positive": prompt(svd.config, 1), "negative": prompt(svd.config, 2), "more": prompt(svd.config, 3)}
    if count == 3:
        conds["positive"] = conds["positive"] + conds.pop("more")
    guider.inner_set_conds(dict(list(conds.items())[:count]))
    guider.set_cfg(2.5)
    noise = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    guider.sample(
        noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), torch.tensor([3.0, 1.0, 0.0]),
        disable_pbar=True, seed=5,
    )


def whole(svd, pack, node):
    return svd.ours, FRAMES


def our_windows(svd, pack, node):
    return pack("nodes.bridge.sampling.windows").with_windows(svd.ours, WINDOW, 1, False, False), WINDOW


def hosts_windows(svd, pack, node):
    return run_node(node("ContextWindowsManual"), svd.ours, WINDOW, 1, "standard_static", 1, False, "pyramid", 0, False)[0], WINDOW


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.one_host) for count in (1, 3))])
@pytest.mark.parametrize("clip", [whole, our_windows, hosts_windows])
def test_a_run_reports_the_need_of_one_video(svd, pack, node, reported, needed, clip, count):
    """Branches of a large clip run one by one."""
    model, frames = clip(svd, pack, node)
    with patch.object(pack("nodes.bridge.model.memory_budget"), "ONE_BY_ONE", 0):
        run(svd, model, count)
    loading, steps = reported
    assert loading == [(needed(frames), needed(frames))]
    anchored = {needed(frames), needed(frames + 1)}  # newer hosts prepend a frame to windows that begin later
    assert steps and set(steps) <= (anchored if clip is hosts_windows else {needed(frames)})


@pytest.mark.parametrize("count", [1, 2, 3])
def test_branches_that_run_together_are_reported_together(svd, reported, needed, count):
    run(svd, svd.ours, count)
    assert reported[0] == [(count * needed(FRAMES), needed(FRAMES))]
    assert max(reported[1]) == count * needed(FRAMES)


def patched(model):
    model = model.clone()
    model.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    return model


@pytest.mark.slow
@pytest.mark.one_host
def test_a_run_with_patched_attention_reports_more_and_the_next_without_it_does_not(svd, pack, reported, needed):
    with patch.object(pack("nodes.bridge.model.memory_budget"), "ONE_BY_ONE", 0):
        for model in (patched(svd.ours), svd.ours):
            run(svd, model, 2)
    more, plain = needed(FRAMES, patched=True), needed(FRAMES)
    assert plain < more and reported[0] == [(more, more), (plain, plain)]


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_the_memory_reported_to_the_host_is_that_of_one_branch(svd, pack, branches):
    budget = pack("nodes.bridge.model.memory_budget").REPORTED
    shapes = {"c_crossattn": [torch.Size([25, 1, 1024])] * branches}
    reported = svd.ours.model.memory_required([25 * branches, 4, 72, 128], cond_shapes=shapes)
    need = activation_bytes(svd.config, 25, 72, 128, 4, budget)
    assert need <= reported <= 1.5 * need
    assert reported < svd.host.model.memory_required([25 * branches, 4, 72, 128], cond_shapes=shapes)


# what patches cost, counted on the meta device


def attention_patch(model, node):
    return patched(model)


def hyper_tile(model, node):
    return run_node(node("HyperTile"), model, 256, 2, 0, False)[0]


def replacement_everywhere(model, node):
    model = model.clone()
    for kind, blocks in (("input", 12), ("middle", 1), ("output", 12)):
        for index in range(blocks):
            model.set_model_attn1_replace(lambda q, k, v, extra: torch.empty_like(q), kind, index)
    return model


def perturbed_middle(model, node):
    model = model.clone()
    model.set_model_attn1_replace(lambda q, k, v, extra: v, "middle", 0)
    return model


# which of them reach beyond the middle
PATCHES = {attention_patch: True, hyper_tile: True, replacement_everywhere: True, perturbed_middle: False}


@pytest.fixture(scope="module")
def real(pack):
    """SVD in its real size, without weights."""
    return pack("nodes.bridge.model.host_unet").UNetModel(
        FULL["svd"], operations=comfy.ops.disable_weight_init, dtype=torch.float16, device="meta"
    )


@pytest.fixture
def counted(real, pack, monkeypatch):
    """Peak bytes of one call of it on the meta device, where attention costs its output alone as a GPU's kernels do."""
    hooks = pack("nodes.bridge.model.host_hooks").HostHooks
    monkeypatch.setattr(hooks, "attention", lambda self, q, k, v, heads: torch.empty_like(q))
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 100 * GIB)
    half = {"dtype": torch.float16, "device": "meta"}

    def count(frames, options):
        call = {
            "x": torch.empty(frames, 8, 72, 128, **half), "timesteps": torch.empty(frames, device="meta"),
            "context": torch.empty(frames, 1, 1024, **half), "y": torch.empty(frames, 768, **half),
        }
        options = {**options, "cond_or_uncond": [0], "sigmas": torch.empty(frames, device="meta")}
        with torch.inference_mode(False), torch.no_grad():
            return peak_bytes(lambda: real(**call, transformer_options=options))

    return count


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("change, frames", [(attention_patch, 14), *((change, 25) for change in PATCHES)])
def test_what_is_estimated_for_patches_is_near_what_is_counted(svd, pack, node, counted, change, frames):
    options = change(svd.ours, node).model_options["transformer_options"]
    memory = pack("nodes.bridge.model.memory_budget")  # where enough is free, chunks are the largest
    estimated = memory.needed(FULL["svd"], frames, 72, 128, 2, memory.BUDGETS[0], patched=PATCHES[change])
    assert pack("nodes.bridge.model.host_hooks").patched_at_large(options, svd.ours.model.diffusion_model) == PATCHES[change]
    assert 1.1 <= estimated / counted(frames, options) <= 1.4


@pytest.mark.slow
@pytest.mark.one_host
def test_patched_attention_takes_little_more_than_none(svd, node, counted):
    """Of a transformer block only its attention needs the whole batch: the feed-forward, which takes most, keeps to chunks.

    With whole blocks it would be 3.2 GiB.
    """
    plain, more = counted(25, {}), counted(25, attention_patch(svd.ours, node).model_options["transformer_options"])
    assert plain < more <= 1.6 * GIB


def test_out_of_memory_with_patched_attention_is_not_tried_again_where_that_saves_nothing(pack, monkeypatch):
    monkeypatch.setattr(management, "get_free_memory", lambda *_: 100 * GIB)
    tried = []

    def call(budget):
        tried.append(budget)
        raise torch.OutOfMemoryError("out of memory (raised by the test)")

    x = torch.empty(25, 8, 72, 128, dtype=torch.float16, device="meta")
    with pytest.raises(torch.OutOfMemoryError):
        pack("nodes.bridge.model.memory_budget").ChunkedRun(FULL["svd"]).attempt_video(x, call, patched=True)
    assert len(tried) == 1


# nothing stays behind


def test_a_model_that_is_dropped_is_free_at_once(svd, pack):
    """The host reports a leak where it has to wait for the garbage collector."""
    model = pack("nodes.bridge.model.unet_loader").load_model(str(svd.path))
    sample(model, *prompts(svd.config), frames=2)
    gc.collect()
    gc.disable()
    try:
        held = weakref.ref(model.model), weakref.ref(model.model.diffusion_model)
        del model
        management.cleanup_models()
        assert [reference() for reference in held] == [None, None]
    finally:
        gc.enable()
