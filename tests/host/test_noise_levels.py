"""The noise levels of SVD Temporal UNet Sampler: Align Your Steps and SIGMAS, against the host's SamplerCustom."""

import logging

import comfy.samplers
import pytest
import torch

from support.families import relative_error
from support.oracle import TWO_LEVELS, Pair, prompts, run_node

FRAMES = 3
FALLING = torch.tensor([700.0, 54.5, 7.9, 1.0, 0.0])


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("levels"), "svd", config=TWO_LEVELS)


@pytest.fixture
def ours(svd, node):
    def run(*, model=None, sampler="euler", scheduler="karras", steps=4, cfg=2.0, samples=None, frames=FRAMES, **options):
        samples = torch.zeros(frames, 4, 8, 8) if samples is None else samples
        return run_node(
            node("TemporalUNetSVDSampler"), model or svd.ours, *prompts(svd.config), {"samples": samples}, 5, steps, cfg, cfg,
            "constant", sampler, scheduler, **options,
        )[0]["samples"]

    return run


@pytest.fixture
def host(svd, node):
    """The host's SamplerCustom on its own network, or on `model`."""
    def run(sigmas, *, model=None, sampler="euler", cfg=2.0, samples=None):
        samples = torch.zeros(FRAMES, 4, 8, 8) if samples is None else samples
        return run_node(
            node("SamplerCustom"), model or svd.host, True, 5, cfg, *prompts(svd.config), comfy.samplers.sampler_object(sampler),
            sigmas, {"samples": samples},
        )[0]["samples"]

    return run


@pytest.mark.parametrize("steps, denoise", [
    (4, 1.0), (1, 1.0), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((10, 1.0), (6, 0.5))),
])
def test_align_your_steps_takes_the_hosts_levels(ours, host, node, steps, denoise):
    start = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(1)) if denoise < 1 else None
    sigmas = run_node(node("AlignYourStepsScheduler"), "SVD", steps, denoise)[0]
    result = ours(scheduler="align_your_steps", steps=steps, denoise=denoise, samples=start)
    assert relative_error(result, host(sigmas, samples=start)) <= 1e-4
    if steps > 1:
        assert relative_error(result, ours(steps=steps, denoise=denoise, samples=start)) > 1e-3  # not those of karras


def test_align_your_steps_at_denoise_0_gives_the_latent_back(ours):
    start = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(scheduler="align_your_steps", denoise=0.0, samples=start), start)


@pytest.mark.parametrize("sampler", ["euler", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lcm", "heun"))])
def test_given_levels_count_in_place_of_steps_scheduler_and_denoise(ours, host, svd, sampler, caplog):
    caplog.set_level(logging.INFO)
    result = ours(sigmas=FALLING, sampler=sampler, steps=99, scheduler="normal", denoise=0.3)
    assert relative_error(result, host(FALLING, model=svd.ours, sampler=sampler)) <= 1e-5
    assert "sigmas is connected: its 4 steps count; steps, scheduler and denoise do not" in caplog.text
    assert "probably another model's" not in caplog.text


@pytest.mark.parametrize("levels", [FALLING[2:], FALLING[:3], FALLING[:1], FALLING[:0]], ids=["second", "first", "one", "none"])
def test_parts_of_a_schedule_do_what_they_do_in_the_hosts_node(ours, host, svd, levels):
    start = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert relative_error(ours(sigmas=levels, samples=start), host(levels, model=svd.ours, samples=start)) <= 1e-5


def test_levels_of_few_step_weights_come_from_karras_scheduler(ours, host, svd, node):
    """AnimateLCM-SVD: 700, 128.56, 13.678, 0.49688 in four steps; at scale 1 the negative is left out."""
    sigmas = run_node(node("KarrasScheduler"), 4, 700.0, 0.49688, 7.0)[0]
    assert sigmas.tolist() == pytest.approx([700, 128.56, 13.678, 0.49688, 0], rel=1e-3)
    model, rows = svd.ours.clone(), []

    def watch(apply, args):
        rows.append(args["input"].shape[0])
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(watch)
    result = ours(model=model, sampler="lcm", sigmas=sigmas, cfg=1.0)
    assert rows == 4 * [FRAMES]
    assert relative_error(result, host(sigmas, sampler="lcm", cfg=1.0)) <= 1e-4


@pytest.mark.slow
@pytest.mark.one_host
def test_guidance_and_windows_follow_given_levels(ours, node):
    more = {"frames": 8, "window_frames": 4, "window_overlap": 2, "guidance_end": 0.5}
    sigmas = run_node(node("AlignYourStepsScheduler"), "SVD", 5, 1.0)[0]
    assert torch.equal(ours(scheduler="align_your_steps", steps=5, **more), ours(sigmas=sigmas, **more))


@pytest.mark.parametrize("wrong, says", [
    (torch.zeros(2, 3), r"is of shape \[2, 3\], expected one row of noise levels"),
    ("karras", "sigmas is a str"),
    (torch.tensor([700.0, float("nan"), 0.0]), "sigmas holds 700, nan, 0"),
    (torch.tensor([700.0, -1.0]), "expected levels from 0 up"),
    (torch.tensor([5.0, 0.0, 0.0]), "sigmas reaches 0 before its end: 5, 0, 0"),
    (FALLING.flip(0), "sigmas rises: 0, 1, 7.9, 54.5, 700.*SamplerCustom"),
])
def test_what_is_no_row_of_falling_levels_is_refused(ours, wrong, says):
    with pytest.raises(ValueError, match=f"SVD Temporal UNet Sampler: .*{says}"):
        ours(sigmas=wrong)


def test_levels_that_are_probably_another_models_are_said(ours, caplog):
    ours(sigmas=torch.tensor([14.6, 1.0, 0.0]))
    assert "sigmas starts at 14.6, but the latent is empty and this model's noise starts at 700" in caplog.text


def test_align_your_steps_says_where_it_does_not_fit(ours, svd, node, caplog):
    ours(scheduler="align_your_steps", steps=14, denoise=0.03)
    assert "denoise 0.03 of 14 steps is less than half a step: the latent stays as it is" in caplog.text
    assert "Choose another scheduler" not in caplog.text
    model = run_node(node("ModelSamplingContinuousEDM"), svd.ours, "v_prediction", 120.0, 0.002)[0]
    ours(model=model, scheduler="align_your_steps", steps=2)
    assert "align_your_steps starts at noise of 700, this model at 120. Choose another scheduler" in caplog.text


def test_schedulers_that_other_packs_add_are_offered(node, monkeypatch):
    monkeypatch.setattr(comfy.samplers.KSampler, "SCHEDULERS", [*comfy.samplers.KSampler.SCHEDULERS, "of_a_pack"])
    offered = node("TemporalUNetSVDSampler").INPUT_TYPES()["required"]["scheduler"][1]["options"]
    assert offered[-2:] == ["of_a_pack", "align_your_steps"]
