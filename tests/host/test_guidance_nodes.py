"""Guidance nodes on the MODEL of SVD Temporal UNet Sampler: each frame is guided as the host does with its scale for all frames."""

import math

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from support.families import relative_error
from support.oracle import TWO_LEVELS, Pair, prompts, run_node, sample

FRAMES, STEPS = 3, 2
CURVE, SCALES = "0:1.0, 0.5:3, 1:3.0", (1.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("guidance"), "svd", config=TWO_LEVELS)


@pytest.fixture
def ours(svd, node):
    """Our sampler node on the MODEL, by default with SCALES as its guidance."""

    def run(model, guidance="curve", steps=STEPS, **options):
        latent = {"samples": torch.zeros(FRAMES, 4, 8, 8)}
        return run_node(
            node("TemporalUNetSVDSampler"), model, *prompts(svd.config), latent, 5, steps, 1.0, 3.0, guidance, "euler", "karras",
            guidance_curve=CURVE, **options,
        )[0]["samples"]

    return run


@pytest.fixture
def expected(svd):
    """The host's KSampler on the MODEL, which runs each step whole for each scale and takes the frames that have it."""

    def run(model):
        def each_frame(executor, x, timestep, model_options, seed):
            guider, results = executor.class_obj, {}
            for guider.cfg in set(SCALES):
                results[guider.cfg] = executor(x, timestep, {**model_options, "disable_cfg1_optimization": True}, seed)
            return torch.stack([results[scale][frame] for frame, scale in enumerate(SCALES)])

        model = model.clone()
        model.model_options.setdefault("sampler_cfg_function", mix)  # the host's own rounds otherwise
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "oracle", each_frame)
        return sample(model, *prompts(svd.config), frames=FRAMES, steps=STEPS, scheduler="karras")

    return run


def mix(args):
    return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])


NODES = {
    "RescaleCFG": (0.7,), "PerturbedAttentionGuidance": (2.0,), "CFGZeroStar": (), "CFGNorm": (0.9,), "TCFG": (),
    "FreSca": (1.0, 1.5, 2), "APG": (0.5, 2.0, 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NODES)
def test_the_hosts_guidance_nodes_act_with_the_scale_of_each_frame(ours, expected, svd, node, name):
    model = run_node(node(name), svd.ours, *NODES[name])[0]
    result = ours(model)
    assert relative_error(result, expected(model)) <= 1e-5
    assert relative_error(result, ours(svd.ours)) > 1e-4


def test_several_nodes_act_together(ours, expected, svd, node):
    model = svd.ours
    for name in ("APG", "RescaleCFG", "CFGZeroStar"):
        model = run_node(node(name), model, *NODES[name])[0]
    assert relative_error(ours(model), expected(model)) <= 1e-5


def number_only(args):
    """A formula that branches on its scale, which only works with a number."""
    scale = args["cond_scale"]
    return args["uncond"] + (math.sqrt(scale) if scale > 2 else scale) * (args["cond"] - args["uncond"])


def old_signature(cond, uncond, cond_scale):
    return uncond + float(cond_scale) * (cond - uncond) * 0.9


def changes_its_scale(args):
    """As sd-dynamic-thresholding computes with it: in place, where it is a tensor."""
    scale = args["cond_scale"]
    scale -= 0.5
    return args["uncond"] + scale * (args["cond"] - args["uncond"])


@pytest.mark.parametrize("formula", [number_only, old_signature, changes_its_scale])
def test_formulas_of_other_packs_act_with_the_scale_of_each_frame(ours, expected, svd, formula):
    model = svd.ours.clone()
    model.set_model_sampler_cfg_function(formula)
    result = ours(model)
    assert relative_error(result, expected(model)) <= 1e-5
    assert relative_error(result, ours(svd.ours)) > 1e-3


def test_functions_around_the_formula_that_take_a_number_only(ours, expected, svd):
    def before(args):
        out = args["conds_out"]
        out[0] = out[1] + (out[0] - out[1]) / math.sqrt(args["cond_scale"])
        return out

    def after(args):
        return args["denoised"] * math.exp(-0.1 * args["cond_scale"])

    model = svd.ours.clone()
    model.set_model_sampler_pre_cfg_function(before)
    model.set_model_sampler_post_cfg_function(after)
    assert relative_error(ours(model), expected(model)) <= 1e-5


def test_a_function_is_called_once_a_step(ours, svd):
    """Some run the network (PerturbedAttentionGuidance), and some add up what they see (APG with momentum)."""
    model, seen = svd.ours.clone(), []
    model.set_model_sampler_cfg_function(lambda args: (seen.append("formula"), mix(args))[1])
    model.set_model_sampler_pre_cfg_function(lambda args: (seen.append("before"), args["conds_out"])[1])
    model.set_model_sampler_post_cfg_function(lambda args: (seen.append("after"), args["denoised"])[1])
    assert torch.equal(ours(model), ours(svd.ours))
    assert seen == ["before", "formula", "after"] * STEPS


def test_an_error_of_the_node_itself_is_raised(ours, svd):
    def broken(args):
        raise ValueError("a fault of the node")

    model = svd.ours.clone()
    model.set_model_sampler_cfg_function(broken)
    with pytest.raises(ValueError, match="a fault of the node"):
        ours(model)


def test_where_guidance_is_off_no_formula_acts(ours, svd, node):
    rescaled = run_node(node("RescaleCFG"), svd.ours, 0.7)[0]
    assert torch.equal(ours(rescaled, guidance_end=0.0), ours(svd.ours, guidance_end=0.0))


@pytest.mark.parametrize("name", ["VideoLinearCFGGuidance", "VideoTriangleCFGGuidance"])
def test_the_hosts_nodes_for_scales_of_frames_are_left_out_with_a_message(ours, svd, node, name, caplog):
    model = run_node(node(name), svd.ours, 2.0)[0]
    assert torch.equal(ours(model), ours(svd.ours))
    assert caplog.text.count(f"the node {name} on the model is left out") == 1
    caplog.clear()
    assert relative_error(ours(model, "constant"), ours(svd.ours, "constant")) > 1e-3
    assert "left out" not in caplog.text
