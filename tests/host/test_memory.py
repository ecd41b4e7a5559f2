"""Video in bounded memory under the host: one branch at a time, and smaller chunks where memory runs out."""

from unittest.mock import patch

import comfy.model_management as management
import pytest
import torch

from support.families import FULL, relative_error
from support.oracle import Pair, prompts, run_node, sample

FRAMES = 4
OUT_OF_MEMORY = torch.OutOfMemoryError("out of memory (raised by the test)")


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("memory"), "svd")


@pytest.fixture
def run(svd):
    return lambda model=None, **options: sample(model or svd.ours, *prompts(svd.config), frames=FRAMES, cfg=2.5, **options)


@pytest.fixture
def large(pack):
    """Small clips count as large ones."""
    with patch.object(pack("nodes.bridge.model.memory_budget"), "ONE_BY_ONE", 0):
        yield


def rows_of(net):
    """The list of rows that each call of the network's first convolution will take."""
    rows = []
    handle = net.input_blocks[0][0].register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    return rows, handle


@pytest.mark.slow
def test_branches_of_a_large_clip_run_one_by_one_with_the_same_result(svd, run, large):
    rows, handle = rows_of(svd.ours.model.diffusion_model)
    apart = run()
    handle.remove()
    assert set(rows) == {FRAMES}
    assert relative_error(apart, sample(svd.host, *prompts(svd.config), frames=FRAMES, cfg=2.5)) <= 1e-5


def test_branches_of_a_small_clip_run_together(svd, run):
    rows, handle = rows_of(svd.ours.model.diffusion_model)
    run()
    handle.remove()
    assert set(rows) == {2 * FRAMES}


def test_each_branch_is_announced_to_patches_as_the_host_does(svd, run, large):
    seen = []

    def patched(q, k, v, extra):
        seen.append((tuple(extra["cond_or_uncond"]), len(extra["uuids"]), len(extra["sigmas"])))
        return q, k, v

    model = svd.ours.clone()
    model.set_model_attn1_patch(patched)
    run(model)
    assert {entry[0] for entry in seen} == {(0,), (1,)}
    assert {entry[1:] for entry in seen} == {(1, FRAMES)}


def test_control_residuals_follow_their_branch(svd, pack, large):
    """Residuals of all rows, of one video's rows and of one row, against one call with the whole batch."""
    net = svd.ours.model.diffusion_model
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    x, y = random(2 * FRAMES, 8, 8, 8), random(2 * FRAMES, svd.config.adm_channels)
    context = random(2 * FRAMES, 1, svd.config.context_dim)
    width = svd.config.model_channels
    skips = [random(rows, width, 8, 8) for rows in (2 * FRAMES, FRAMES, 1)]
    skips += [None] * (svd.config.num_skips - len(skips))

    def call():
        options = {"cond_or_uncond": [0, 1]}
        return net(x, torch.full((2 * FRAMES,), 0.3), context, y, control={"output": list(skips)}, transformer_options=options)

    apart = call()
    with patch.object(pack("nodes.bridge.model.memory_budget"), "ONE_BY_ONE", 2**60):
        assert relative_error(apart, call()) <= 1e-5


# when memory runs out


MIB = 2**20
SIZE = (16, 16)


@pytest.fixture
def small_chunks(pack, monkeypatch):
    """Budgets that make a difference to the miniature, as the real ones do to SVD."""
    monkeypatch.setattr(pack("nodes.bridge.model.memory_budget"), "BUDGETS", (4 * MIB, 2 * MIB, MIB))


@pytest.fixture
def run_out(svd):
    """run_out(largest, error): memory runs out in every call with a budget above `largest`; gives the budgets tried."""
    handles = []

    def start(largest, error=OUT_OF_MEMORY):
        tried = []

        def hook(module, args):
            tried.append(args[-1].budget)
            if args[-1].budget > largest:
                raise error

        handles.append(svd.ours.model.diffusion_model.input_blocks[4][0].register_forward_pre_hook(hook))
        return tried

    yield start
    for handle in handles:
        handle.remove()


@pytest.fixture
def long_run(svd, node):
    """Two steps in windows of five frames and two, branches apart."""

    def run(steps=2, **options):
        options = {"window_frames": 5, "window_overlap": 2, **options}
        latent = {"samples": torch.zeros(11, 4, *SIZE)}
        return run_node(
            node("TemporalUNetSVDSampler"), svd.ours, *prompts(svd.config), latent, 5, steps, 1.0, 2.5, "linear", "euler", "karras",
            **options,
        )[0]["samples"]

    return run


def warnings(caplog):
    return [record.message for record in caplog.records if "out of memory" in record.message]


@pytest.mark.slow
@pytest.mark.one_host
def test_out_of_memory_goes_on_in_smaller_chunks_with_the_same_result(run, run_out, small_chunks, caplog):
    expected = run(size=SIZE)
    tried = run_out(MIB)
    made = run(size=SIZE)
    assert tried[:3] == [4 * MIB, 2 * MIB, MIB]
    assert len(warnings(caplog)) == 2 and "2 MiB" in warnings(caplog)[0] and "1 MiB" in warnings(caplog)[1]
    assert relative_error(made, expected) <= 1e-5


@pytest.mark.slow
@pytest.mark.one_host
def test_a_size_that_ran_out_is_not_tried_again_in_the_same_run(long_run, run_out, small_chunks, large, caplog):
    """Of windows, steps and branches only the first meets it; the next run begins again."""
    tried = run_out(MIB)
    long_run()
    assert tried[:2] == [4 * MIB, 2 * MIB] and len(tried) > 10 and set(tried[2:]) == {MIB}
    assert len(warnings(caplog)) == 2
    del tried[:]
    long_run(steps=1)
    assert tried[:2] == [4 * MIB, 2 * MIB]


@pytest.mark.slow
@pytest.mark.one_host
def test_another_shape_in_the_same_run_has_its_own_size_and_no_more_warnings(long_run, run_out, small_chunks, caplog):
    """Both branches together, then one alone, where guidance ends."""
    tried = run_out(MIB)
    long_run(guidance_end=0.5)
    assert tried.count(4 * MIB) == tried.count(2 * MIB) == 2
    assert len(warnings(caplog)) == 2


def test_out_of_memory_in_the_smallest_chunks_is_an_error(run, run_out, small_chunks):
    tried = run_out(0)
    with pytest.raises(torch.OutOfMemoryError):
        run(size=SIZE)
    assert tried == [4 * MIB, 2 * MIB, MIB]


def test_smaller_chunks_that_save_nothing_are_not_tried(run, run_out):
    """The whole miniature is smaller than the smallest budget."""
    tried = run_out(0)
    with pytest.raises(torch.OutOfMemoryError):
        run()
    assert len(tried) == 1


def test_another_error_is_not_taken_for_out_of_memory(run, run_out, small_chunks):
    tried = run_out(0, ValueError("of another kind"))
    with pytest.raises(ValueError, match="of another kind"):
        run(size=SIZE)
    assert len(tried) == 1


def test_an_accelerators_error_is_what_the_host_takes_it_for(run, run_out, small_chunks):
    """PyTorch reports some of CUDA's failed allocations so; 0.16.3 does not know."""
    tried = run_out(2 * MIB, torch.AcceleratorError("CUDA error: out of memory"))
    if hasattr(management, "is_oom"):
        assert torch.isfinite(run(size=SIZE)).all() and tried[:2] == [4 * MIB, 2 * MIB]
    else:
        with pytest.raises(torch.AcceleratorError):
            run(size=SIZE)


def test_little_free_memory_chooses_smaller_chunks(pack, monkeypatch):
    memory = pack("nodes.bridge.model.memory_budget")
    for free, level in ((300, 0), (299, 1), (200, 1), (100, 2), (0, 2)):
        monkeypatch.setattr(memory.management, "get_free_memory", lambda device, free=free: free)
        assert memory.fitting_budget([300, 200, 100], torch.device("mps")) == level


def test_little_free_memory_chooses_no_smaller_chunks_than_help(pack, monkeypatch):
    memory = pack("nodes.bridge.model.memory_budget")
    monkeypatch.setattr(memory.management, "get_free_memory", lambda device: 0)
    assert memory.fitting_budget([300, 200, 200], torch.device("mps")) == 1


def test_a_card_with_twice_the_memory_that_is_needed_runs_without_chunks_and_falls_back(pack, monkeypatch, caplog):
    """Chosen by what is free at the call; the host is told of the need in chunks, or small cards would unload weights."""
    memory, cuda, tried = pack("nodes.bridge.model.memory_budget"), torch.device("cuda"), []

    def need(budget):
        return memory.needed(FULL["svd"], 25, 72, 128, 2, budget)

    def budget_of(free, device, largest=None):
        def call(budget):
            tried.append(budget)
            if largest is not None and (budget is None or budget > largest):
                raise OUT_OF_MEMORY
            return budget

        monkeypatch.setattr(memory.management, "get_free_memory", lambda _: free)
        del tried[:]
        return memory.ChunkedRun(FULL["svd"]).attempt("clip", need, device, call)

    whole = need(None)
    assert budget_of(2 * whole, cuda) is None and budget_of(2 * whole - 1, cuda) == memory.BUDGETS[0]
    assert budget_of(2 * whole, torch.device("mps")) == memory.BUDGETS[0]
    assert budget_of(2 * whole, cuda, largest=memory.BUDGETS[1]) == memory.BUDGETS[1] and tried == [None, *memory.BUDGETS[:2]]
    assert len(warnings(caplog)) == 2
    assert memory.ChunkedRun(FULL["svd"]).need(1, 25, 72, 128, 2) == need(memory.REPORTED)


def test_a_cpu_with_plenty_of_memory_runs_in_the_smallest_chunks(pack):
    """They are the fastest there."""
    memory = pack("nodes.bridge.model.memory_budget")
    made = memory.ChunkedRun(FULL["svd"]).attempt("clip", lambda budget: 1, torch.device("cpu"), lambda budget: budget)
    assert made == 32 * MIB == memory.BUDGETS[-1]


# patches, which may count on the whole batch


@pytest.fixture
def seen(svd):
    """Rows that the first attention over a frame is given, in the largest blocks and in the middle one."""
    net = svd.ours.model.diffusion_model
    rows = {"input": [], "middle": []}
    handles = [
        block.transformer_blocks[0].attn1.to_q.register_forward_pre_hook(
            lambda module, args, place=place: rows[place].append(args[0].shape[0])
        ) for place, block in (("input", net.input_blocks[1][1]), ("middle", net.middle_block[1]))
    ]
    yield rows
    for handle in handles:
        handle.remove()


def with_patch(model):
    model = model.clone()
    model.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    return model


@pytest.fixture
def single_rows(pack, monkeypatch):
    monkeypatch.setattr(pack("nodes.bridge.model.memory_budget"), "BUDGETS", (1,))


@pytest.mark.slow
@pytest.mark.one_host
def test_patched_attention_is_given_the_whole_batch(svd, run, single_rows, seen):
    run()
    assert set(seen["input"]) == set(seen["middle"]) == {1}
    for rows in seen.values():
        rows.clear()
    run(with_patch(svd.ours))
    assert set(seen["input"]) == set(seen["middle"]) == {2 * FRAMES}


@pytest.mark.slow
@pytest.mark.one_host
def test_patches_of_output_blocks_act_in_the_smallest_chunks_as_in_whole(svd, run, pack, single_rows):
    """One takes the place of residual blocks and is given h with its skip, as the host gives it; one changes both before."""
    widths = []

    def instead(layer, x, emb, context, options, size, time_context, frames, image_only):
        widths.append((layer.channels, x.shape[1]))
        return layer(x, emb, frames, image_only)

    model = svd.ours.clone()
    model.set_model_output_block_patch(lambda h, skip, options: (h * 1.5, skip * 0.5))
    expected = run(model)
    model.set_model_forward_timestep_embed_patch((pack("nodes.bridge.model.host_layers").VideoResBlock, instead))
    assert relative_error(run(model), expected) <= 1e-5
    assert widths and all(channels == given for channels, given in widths)


@pytest.mark.slow
@pytest.mark.one_host
def test_a_replaced_attention_is_given_the_whole_batch_in_its_block_alone(svd, run, node, single_rows, seen):
    run(run_node(node("PerturbedAttentionGuidance"), svd.ours, 3.0)[0])
    assert set(seen["input"]) == {1}
    assert set(seen["middle"]) == {1, FRAMES}  # without the perturbation, and the positive branch with it


@pytest.mark.slow
@pytest.mark.one_host
def test_chunks_next_to_patched_attention_change_no_result(svd, run, pack, monkeypatch):
    whole = run(with_patch(svd.ours))
    monkeypatch.setattr(pack("nodes.bridge.model.memory_budget"), "BUDGETS", (1,))
    assert relative_error(run(with_patch(svd.ours)), whole) <= 1e-5
