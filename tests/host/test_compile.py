"""The host's TorchCompileModel on our MODEL: one graph, without breaks, for all steps of a run; no more than the host's network.

Small networks of two levels, since tracing takes seconds a layer; "eager" in the place of inductor counts the same graphs. Where
ours has a single one, the host's is not traced: it cannot have fewer.
"""

from dataclasses import replace

import comfy.controlnet
import comfy.ldm.modules.attention as host_attention
import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel as HostUNet
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import get_cpp_compiler

from support.families import random_weights, relative_error
from support.oracle import SMALL, Pair, prompts, run_node, sample
from support.small import SD, SVD, build, controls
from unet.hooks import Call

STEPS = 20
FEW = {"depth_in": (0, 1), "depth_out": (0,) * 4, "depth_middle": 0}  # one transformer
LEVELS = {
    "svd": replace(SVD, **FEW | {"depth_out": (1, 0, 0, 0)}),
    "sd1": replace(SD, linear_projection=False, **FEW),
    "sdxl": replace(SD, adm_channels=SMALL["sdxl"].adm_channels, **FEW | {"depth_in": (0, 2)}),
}


@pytest.fixture
def models(pack, tmp_path):
    """{"ours": our MODEL of a family, "host": the host's}, with networks of two levels on the same weights; and their config."""
    def make(name, levels=LEVELS):
        pair, base = Pair(pack, tmp_path, name), SMALL[name]
        config = replace(levels[name], context_dim=base.context_dim)
        loader = pack("nodes.bridge.model.unet_loader")
        of_host = loader.host_config(config) | loader.own_config(config)
        ours = pack("nodes.bridge.model.host_unet").UNetModel(config, operations=comfy.ops.disable_weight_init)
        host = HostUNet(**of_host, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
        for model, network in ((pair.ours.model, ours), (pair.host.model, host)):
            network.load_state_dict(random_weights(config))
            model.diffusion_model = network.requires_grad_(False).eval()
            model.model_config.unet_config.update(of_host)
        return {"ours": pair.ours, "host": with_sdpa(pair.host)}, config

    return make


def with_sdpa(model):
    """The attention that ours takes: the host's own on a CPU asks for free memory, which breaks the graph at each one."""
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda function, *args, **kwargs: host_attention.attention_pytorch(*args, **kwargs))
    return model


@pytest.fixture
def compiled(node):
    torch._dynamo.reset()
    counters.clear()
    yield lambda model, backend="eager": run_node(node("TorchCompileModel"), model, backend)[0]
    torch._dynamo.reset()


def graphs():
    """(graphs, graph breaks) since the counters were cleared."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def counted(models, compiled, *runs):
    """(graphs, breaks) of each compiled MODEL after each run, by its name. Asserts that our results are those without compiling."""
    found = {}
    for name, model in models.items():
        torch._dynamo.reset()
        counters.clear()
        found[name], quick = [], compiled(model)
        for run in runs:
            result = run(quick)
            found[name].append(graphs())
            assert name == "host" or relative_error(result, run(model)) <= 1e-5
    return found


class Steered(comfy.controlnet.ControlBase):
    """A CONTROL_NET that gives the same residuals at each step."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        *output, middle = controls(x_noisy.shape[0], *x_noisy.shape[2:])
        return {"input": [], "middle": [middle], "output": output}


def lora(config, seed):
    """One of rank 4 on a convolution and on a linear layer."""
    generator, width = torch.Generator().manual_seed(seed), config.model_channels
    shapes = {"input_blocks_0_0": (width, config.in_channels, 3, 3), "middle_block_0_emb_layers_1": (2 * width, 4 * width)}
    made = {}
    for name, (out, into, *kernel) in shapes.items():
        made[f"lora_unet_{name}.lora_up.weight"] = torch.randn(out, 4, *[1] * len(kernel), generator=generator)
        made[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, into, *kernel, generator=generator)
    return made


@pytest.mark.slow
@pytest.mark.one_host
def test_our_samplers_video_steps_run_in_one_graph(models, compiled, node):
    both, config = models("svd")

    def run(model):
        return run_node(
            node("TemporalUNetSVDSampler"), model, *prompts(config), {"samples": torch.zeros(3, 4, 8, 8)}, 1, STEPS, 1.0, 2.5,
            "linear", "euler", "karras")[0]["samples"]

    assert counted({"ours": both["ours"]}, compiled, run) == {"ours": [(1, 0)]}


@pytest.mark.slow
@pytest.mark.one_host
def test_residuals_another_lora_and_another_size_make_no_more_graphs_than_with_the_hosts_network(models, compiled):
    """A LoRA is changed in place between the runs."""
    both, config = models("sd1")
    conds = [[[cond, {**more, "control": Steered(), "control_apply_to_uncond": True}]] for [[cond, more]] in prompts(config)]
    results = []

    def run(strength, **options):
        def with_lora(model):
            model, _ = comfy.sd.load_lora_for_models(model, None, lora(config, 1), strength, 0.0)
            results.append(sample(model, *conds, **{"steps": STEPS, "frames": 2, **options}))
            return results[-1]

        return with_lora

    found = counted(both, compiled, run(0.01), run(0.02), run(0.0), run(0.01, size=(16, 24), steps=2))
    first, second, _, larger = found["ours"]
    assert first == second == (1, 0) and larger[1] == 0
    assert all(one <= other for mine, hosts in zip(found["ours"], found["host"], strict=True)
               for one, other in zip(mine, hosts, strict=True)), found
    assert relative_error(results[0], results[2]) > 1e-4, "the LoRA changed nothing"


@pytest.mark.slow
@pytest.mark.one_host
def test_steps_with_freeu_and_a_patch_of_attention_run_in_one_graph(models, compiled, node):
    both, config = models("sdxl")

    model = run_node(node("FreeU_V2"), both["ours"], 1.3, 1.4, 0.9, 0.2)[0]
    model.set_model_attn2_patch(lambda q, k, v, options: (q, 1.1 * k, v))
    found = counted({"ours": model}, compiled, lambda model: sample(model, *prompts(config), frames=1, steps=STEPS))
    assert found == {"ours": [(1, 0)]}


@pytest.mark.slow
@pytest.mark.one_host
def test_inductor_makes_the_same_video(models, compiled):
    """The host's default backend, with the C++ compiler of this machine: without one this raises what is missing."""
    get_cpp_compiler()
    one_level = {"channel_mult": (1,), "num_res_blocks": (1,), "depth_in": (1,), "depth_out": (0, 0), "self_attention": (True,)}
    both, config = models("svd", {"svd": replace(SVD, depth_middle=0, **one_level)})
    options = {"frames": 2, "steps": 3, "cfg": 1.0}
    expected = sample(both["ours"], *prompts(config), **options)
    assert relative_error(sample(compiled(both["ours"], "inductor"), *prompts(config), **options), expected) <= 1e-4
    assert graphs() == (1, 0)


@pytest.mark.slow
@pytest.mark.one_host
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
