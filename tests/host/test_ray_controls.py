"""Controls of a MODEL whose network is called on the workers of a real Ray."""

import comfy.controlnet
import pytest
import torch
from safetensors.torch import save_file

from support import controlnexts
from support.families import relative_error
from support.oracle import Pair, hints, prompts, run_node
from support.pools import calls_here, pooled  # noqa: F401  (fixtures)
from support.published import WIDTHS

FRAMES, LENGTH, OVERLAP, STEPS = 8, 4, 1, 2
pytestmark = [pytest.mark.slow, pytest.mark.one_host]


@pytest.fixture(scope="module")
def pair(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("pool"), "svd")


@pytest.fixture
def run(node):
    def run(model, conds):
        return run_node(
            node("TemporalUNetSVDSampler"), model, *conds, {"samples": torch.zeros(FRAMES, 4, 8, 8)}, 5, STEPS, 1.0, 2.5, "linear",
            "euler", "karras", window_frames=LENGTH, window_overlap=OVERLAP,
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
