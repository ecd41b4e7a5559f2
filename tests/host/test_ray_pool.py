"""The network of a MODEL on workers of a real Ray, which is started on this machine: each is a process with its own network."""

import pytest
import torch

from support.families import relative_error
from support.oracle import Pair, prompts, run_node, sample

TOTAL, LENGTH, OVERLAP, STEPS = 14, 5, 2, 2
pytestmark = [pytest.mark.slow, pytest.mark.one_host]


@pytest.fixture(scope="module")
def pairs(pack, tmp_path_factory):
    return {name: Pair(pack, tmp_path_factory.mktemp("pool"), name) for name in ("svd", "sd1", "sdxl")}


@pytest.fixture
def pooled(node):
    def pooled(model, workers=2, here=False):
        return run_node(node("TemporalUNetRayPool"), model, "", workers, here)

    return pooled


@pytest.fixture
def run(node, pairs):
    def run(model, sampler="euler", conds=None, frames=TOTAL, **options):
        return run_node(
            node("TemporalUNetSVDSampler"), model, *(conds or prompts(pairs["svd"].config)),
            {"samples": torch.zeros(frames, 4, 8, 8)}, 5, STEPS, 1.0, 2.5, "linear", sampler, "karras",
            **{"window_frames": LENGTH, "window_overlap": OVERLAP, **options},
        )[0]["samples"]

    return run


@pytest.fixture
def calls_here():
    """Counts what the network of a MODEL computes on this machine: `calls_here(model)` is a list with an entry for each call."""
    handles = []

    def counted(model):
        calls = []
        layer = model.model.diffusion_model.input_blocks[0][0]
        handles.append(layer.register_forward_pre_hook(lambda *args: calls.append(1)))
        return calls

    yield counted
    for handle in handles:
        handle.remove()


def test_one_and_two_workers_make_what_this_machine_makes(pairs, pooled, run, calls_here):
    """Windows of our sampler, of several steps at a time and of one, and the branches of KSampler; networks of the host, too."""
    svd = pairs["svd"]

    def all_made(prepared):
        made = {sampler: run(prepared(svd.ours), sampler) for sampler in ("euler", "dpmpp_2m")}
        for pair in pairs.values():
            made |= {(pair.name, whose): sample(prepared(model), *prompts(pair.config))
                     for whose, model in (("ours", pair.ours), ("host's", pair.host))}
        return made

    expected = all_made(lambda model: model)
    calls = [calls_here(model) for model in (svd.ours, svd.host)]
    one, two = (all_made(lambda model, count=count: pooled(model, count)[0]) for count in (1, 2))
    assert calls == [[], []]
    assert all(torch.equal(one[name], two[name]) for name in expected)
    assert {name: error for name in expected if (error := relative_error(two[name], expected[name])) > 1e-4} == {}
    here_too = run(pooled(svd.ours, here=True)[0])
    assert calls[0] and relative_error(here_too, expected["euler"]) <= 1e-4
    assert pooled(svd.ours)[1].count("(CPU)") == 2
