"""Several takes of a clip in one run: each is what a run of its own with its seed makes, and the latent says where each ends."""

import comfy.utils
import pytest
import torch

from support.oracle import TWO_LEVELS, Pair, prompts, run_node

FRAMES, SEED, TAKES = 3, 40, 3
KEY = "temporal_unet.take_frames"


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("takes"), "svd", config=TWO_LEVELS)


@pytest.fixture
def run(svd, node):
    """The latent of our sampler."""

    def run(seed=SEED, takes=1, frames=FRAMES, sampler="euler", latent=None, steps=2, **options):
        latent = {"samples": torch.zeros(frames, 4, 8, 8), **(latent or {})}
        return run_node(
            node("TemporalUNetSVDSampler"), svd.ours, *prompts(svd.config), latent, seed, steps, 1.0, 2.5, "linear", sampler,
            "karras", takes=takes, **options,
        )[0]

    return run


def noise(frames, seed=3):
    return torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def masked(frames=FRAMES):
    mask = torch.ones(frames, 1, 64, 64)
    mask[0, :, :, :32] = 0
    return {"samples": noise(frames), "noise_mask": mask, "batch_index": list(range(2, frames + 2))}


CASES = {
    "euler": {}, "noise in each step": {"sampler": "euler_ancestral"}, "Brownian noise": {"sampler": "dpmpp_2m_sde"},
    "a mask, given latents and noise by index": {"sampler": "ddim", "latent": masked(), "denoise": 0.7},
    "windows and levels of its own": {
        "sampler": "dpm_fast", "frames": 5, "window_frames": 3, "window_overlap": 1, "closed_loop": True,
    },
}


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("case", CASES)
def test_each_take_is_a_run_of_its_own_with_the_next_seed(run, case, caplog):
    caplog.set_level("INFO")
    made = run(takes=TAKES, **CASES[case])
    frames = CASES[case].get("frames", FRAMES)
    assert made[KEY] == frames
    takes = made["samples"].split(frames)
    alone = [run(seed, **CASES[case]) for seed in (40, 41, 42)]
    assert all(KEY not in one for one in alone)
    assert all(torch.equal(take, one["samples"]) for take, one in zip(takes, alone, strict=True))
    assert not torch.equal(takes[0], takes[1])
    assert f"3 takes of {frames} frames with the seeds 40, 41, 42." in caplog.text


def test_after_the_last_seed_comes_the_first(pack):
    takes = pack("nodes.bridge.sampling.takes").takes_of({"samples": noise(2)}, 2**64 - 1, 3)
    assert [take.seed for take in takes] == [2**64 - 1, 0, 1]


@pytest.mark.slow
@pytest.mark.one_host
def test_a_latent_of_takes_is_sampled_take_by_take(run, node):
    takes = {"samples": noise(3 * FRAMES), KEY: FRAMES, "noise_mask": torch.ones(3 * FRAMES, 1, 8, 8)}
    made = run(7, latent=takes, denoise=0.5)
    assert made[KEY] == FRAMES
    for index, take in enumerate(made["samples"].split(FRAMES)):
        cut = run_node(node("LatentFromBatch"), takes, index * FRAMES, FRAMES)[0]
        del cut["batch_index"]
        assert torch.equal(take, run(7 + index, latent=cut, denoise=0.5)["samples"])
    with pytest.raises(ValueError, match="takes is 2, but latent_image holds 3 takes already.*Set takes to 1"):
        run(7, takes=2, latent=takes)


@pytest.mark.one_host
def test_a_take_taken_out_can_be_sampled_several_times(run, node):
    takes = {"samples": noise(2 * FRAMES), KEY: FRAMES}
    cut = run_node(node("LatentFromBatch"), takes, FRAMES, FRAMES)[0]
    made = run(7, takes=2, latent=cut, denoise=0.5)
    assert made["samples"].shape[0] == len(made["batch_index"]) == 2 * FRAMES
    assert torch.equal(run(8, latent=cut, denoise=0.5)["samples"], made["samples"][FRAMES:])


def test_takes_cut_through_count_as_one_clip_and_the_log_says_so(run, caplog):
    made = run(latent={"samples": noise(4), KEY: 3}, steps=1)
    assert made["samples"].shape[0] == 4 and KEY not in made
    assert "the latent has 4 frames, which are no whole takes of 3 frames each" in caplog.text


def test_progress_counts_the_steps_of_all_takes(run):
    seen = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append((value, total)))
    try:
        run(takes=TAKES, steps=2)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert seen[0] == (1, 2 * TAKES) and seen[-1] == (2 * TAKES, 2 * TAKES)
    assert seen == sorted(set(seen)) and {total for _, total in seen} == {2 * TAKES}  # the host leaves out some that come quickly
