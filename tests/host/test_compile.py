"""The host's TorchCompileModel on our MODEL: one graph, without breaks, for all steps of a run.

Networks of two levels, since tracing takes seconds a layer; "eager" in the place of inductor counts the same graphs.
"""

from dataclasses import replace

import comfy.ops
import pytest
import torch
from torch._dynamo.utils import counters

from support.families import random_weights, relative_error
from support.oracle import SMALL, Pair, prompts, run_node, sample
from support.small import SD, SVD, build
from unet.hooks import Call


@pytest.fixture
def two_levels(pack, tmp_path):
    """Our MODEL of a family with a network of two levels in it."""
    def make(name, levels):
        pair, base = Pair(pack, tmp_path, name), SMALL[name]
        config = replace(levels, context_dim=base.context_dim)
        net = pack("nodes.bridge.model.host_unet").UNetModel(config, operations=comfy.ops.disable_weight_init)
        net.load_state_dict(random_weights(config))
        pair.ours.model.diffusion_model = net.requires_grad_(False).eval()
        return pair.ours, config

    return make


@pytest.fixture
def compiled(node):
    torch._dynamo.reset()
    counters.clear()
    yield lambda model: run_node(node("TorchCompileModel"), model, "eager")[0]
    torch._dynamo.reset()


def graphs():
    """(graphs, graph breaks) since the counters were cleared."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name, levels, frames", [("svd", SVD, 3), ("sd2", SD, 1)])
def test_compiled_steps_run_in_one_graph_without_breaks(two_levels, compiled, name, levels, frames):
    model, config = two_levels(name, levels)
    conds, options = prompts(config), {"frames": frames, "steps": 20}
    expected = sample(model, *conds, **options)
    assert relative_error(sample(compiled(model), *conds, **options), expected) <= 1e-5
    assert graphs() == (1, 0)


@pytest.mark.slow
def test_a_layer_compiles_for_any_size(compiled):
    """The second size makes the compiler trace for any, and what the budget asks of the size must not break that."""
    block, call = build(SVD).input_blocks[1], Call(
        emb=torch.randn(3, 128), context=torch.randn(3, 1, SVD.context_dim), num_frames=3, budget=512 * 2**20,
    )
    for layer in block.children():
        compiled_layer = torch.compile(layer, backend="eager")
        for size in ((8, 8), (16, 8), (24, 16), (40, 32)):
            x = torch.randn(3, 32, *size)
            assert relative_error(compiled_layer(x, call), layer(x, call)) <= 1e-5
    found, breaks = graphs()
    assert found < 2 * 4 and not breaks  # less than a graph for each layer and size
