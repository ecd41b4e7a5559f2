"""The trained miniature in the host: what it promises on a few of the worlds that it never saw (`dev.py bench quality`: all).

How good it is does not depend on the host's version, for on each its video is that of the host's own network.
"""

import hashlib
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open

from support.live import peak_bytes
from support.oracle import Pair, prompts, sample
from tools.bench import long_clips, quality
from tools.miniature import world

FILES = (quality.WEIGHTS, quality.WEIGHTS.with_name(quality.CONTROLNET))
WORLDS, STEPS = 2, 12


@pytest.fixture(scope="module")
def studio():
    with torch.inference_mode():
        return quality.Studio()


@pytest.fixture(scope="module")
def made(studio):
    """(true clip, video of the miniature) of the first worlds."""
    with torch.inference_mode():
        return [(world.render(of), studio.make(of, seed=n, steps=STEPS)) for n, of in enumerate(quality.held_out(WORLDS))]


def test_the_files_are_those_that_were_measured():
    sums = dict(reversed(line.split()) for line in quality.WEIGHTS.with_name("SHA256SUMS").read_text().splitlines())
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES} == sums
    assert sum(path.stat().st_size for path in FILES) <= 12e6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_states_what_it_is_and_how_it_was_trained(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}
    assert {"title", "description", "training", "commit", "license"} <= metadata.keys()
    assert "F16" in dtypes


@pytest.mark.one_host
@pytest.mark.slow
def test_videos_are_far_nearer_to_the_truth_than_a_still(made):
    still = quality.summary([quality.score(quality.repeat_first(truth), truth) for truth, _ in made])
    ours = quality.summary([quality.score(video, truth) for truth, video in made])
    assert ours["psnr"] >= still["psnr"] + 5
    assert ours["centre"] <= 3


@pytest.mark.slow
def test_the_hosts_own_network_makes_the_same_video(studio):
    of = quality.held_out(1)[0]
    expected = studio.host_make(studio.host_model(), of, seed=0, steps=6)
    assert np.abs(studio.make(of, seed=0, steps=6) - expected).max() <= 1e-3


@pytest.mark.one_host
@pytest.mark.slow
def test_the_motion_bucket_sets_the_speed(studio):
    motion = quality.motion_response(studio, worlds=1, buckets=quality.BUCKETS[::2], steps=4)
    assert motion["rank_correlation"] >= 0.9


@pytest.mark.one_host
@pytest.mark.slow
def test_the_controlnet_leads_the_sprite(studio):
    following, _ = quality.path_following(studio, worlds=1, strengths=(0.0, 0.5, 1.0), steps=4)
    assert following["strength_0_is_bit_equal"]
    assert following["centre"] <= 4
    free, half, full = following["by_strength"]
    assert free > half > full


@pytest.mark.one_host
@pytest.mark.slow
def test_the_controlnet_leads_through_windows(studio):
    """24 frames in windows of 8: each window is shown its own section of the path."""
    of, frames = quality.held_out(2)[1], 24
    path, _ = world.drawn_path(of, world.HELD_OUT + 1, frames)
    centres = quality.centres_of(studio.make(of, frames=frames, path=path, steps=4), of)
    away = np.linalg.norm(centres - path, axis=1)
    assert away.mean() <= 4 and away.max() <= 8
    first_hints_again = path[np.arange(frames) % world.FRAMES]
    assert np.linalg.norm(centres - first_hints_again, axis=1).mean() > 10, "the path would not show that mistake"


@pytest.mark.one_host
@pytest.mark.slow
def test_joints_of_windows_are_not_seen(studio):
    """20 frames in windows of 8; the first two windows' worth is as good as a clip of one."""
    of = quality.held_out(1)[0]
    video = studio.make(of, frames=20, steps=5)
    jumps = long_clips.jumps(video)
    assert jumps[long_clips.joints(studio, 20, 4, 5)].mean() <= 1.2 * np.median(jumps)
    seen, alone = long_clips.appearance(video, of), long_clips.appearance(studio.make(of, steps=5), of)
    assert seen[1:16].mean() >= alone[1:].mean() - 1


@pytest.mark.one_host
@pytest.mark.slow
def test_a_closed_loop_leads_back_to_its_start(studio):
    of = quality.held_out(1)[0]
    jumps = long_clips.jumps(studio.make(of, frames=20, steps=8, closed_loop=True), closed_loop=True)
    assert jumps[-1] <= 1.2 * np.median(jumps)


@pytest.mark.one_host
@pytest.mark.slow
def test_chained_clips_keep_their_colors(studio, monkeypatch):
    monkeypatch.setattr(long_clips, "SEGMENTS", 3)
    of = quality.held_out(3)[2]  # whose colors drift most
    kept, made, triangle = (
        long_clips.drift(long_clips.chain(studio, of, 0, steps=5, guidance=guidance, keep_colors=keep), of)
        for guidance, keep in (("linear", True), ("linear", False), ("triangle", True))
    )
    for drift, share in ((kept, 0.85), (triangle, 0.75)):
        assert drift["colour"] <= 0.65 * made["colour"] and drift["contrast"] <= share * made["contrast"]


@pytest.mark.slow
@pytest.mark.one_host
def test_memory_does_not_grow_with_the_clip_but_for_its_latents(studio):
    """Of the latent itself the host, the sampler and the windows hold a few copies: noise, x, denoised, sums."""
    peaks, latents = [], []
    for frames in (16, 64):
        positive, negative, latent = studio.conditioning(quality.held_out(1)[0], frames)
        peaks.append(peak_bytes(partial(
            quality.node("TemporalUNetSVDSampler").execute,
            studio.model, positive, negative, latent, 0, 1, 1.0, 1.5, "linear", "euler", "karras",
        )))
        latents.append(latent["samples"].nbytes)
    assert peaks[1] - peaks[0] <= 8 * (latents[1] - latents[0])


def test_the_controlnet_of_video_is_refused_by_an_image_model(studio, pack, tmp_path):
    pair = Pair(pack, tmp_path, "sd1")
    conditions = quality.node("TemporalUNetApplyControlNetResiduals").execute(
        *prompts(pair.config), studio.controlnet, torch.zeros(1, 64, 64, 3), 1.0, 0.0, 1.0
    ).result
    with pytest.raises(ValueError, match="this ControlNet is for Stable Video Diffusion, the model is Stable Diffusion 1"):
        sample(pair.ours, *conditions)
