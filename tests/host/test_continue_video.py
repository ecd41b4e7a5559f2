"""Continue Video and Join Video: the next clip starts from the last frame, and does not drift in color."""

import pytest
import torch

from support.oracle import run_node
from tools.untrained import VAE_SEED, vae_weights


@pytest.fixture(scope="module")
def vae():
    import comfy.sd

    return comfy.sd.VAE(sd=vae_weights(VAE_SEED))


@pytest.fixture
def video():
    return torch.rand(5, 64, 72, 3, generator=torch.Generator().manual_seed(1))


def test_it_starts_from_the_last_frame(node, vae, video):
    ours = run_node(
        node("TemporalUNetContinueVideo"), video, vae, 6, 90, 7, augmentation_level=0.1, seed=3, keep_colors=False
    )
    plain = run_node(
        node("TemporalUNetSVDConditioning"), video[-1:], vae, 72, 64, 6, 90, 7, augmentation_level=0.1, seed=3
    )
    for mine, other in zip(ours[:2], plain[:2], strict=True):
        assert torch.equal(mine[0][1]["concat_latent_image"], other[0][1]["concat_latent_image"])
        assert mine[0][1]["motion_bucket_id"] == 90 and mine[0][1]["fps"] == 7
    assert ours[2]["samples"].shape == (6, 4, 8, 9)


def test_it_keeps_the_colors_of_the_first_frame(node, vae, video):
    """What became too bright and too contrasty is given as it was; other frames do not count."""
    true = 0.4 + 0.2 * video[0]
    drifted = torch.stack([true, torch.rand_like(true), (true - 0.5) * 1.3 + torch.tensor([0.55, 0.5, 0.45])])
    ours = run_node(node("TemporalUNetContinueVideo"), drifted, vae, 6, 90, 7)[0][0][1]["concat_latent_image"]
    plain = run_node(node("TemporalUNetSVDConditioning"), true[None], vae, 72, 64, 6, 90, 7)[0][0][1]["concat_latent_image"]
    assert torch.allclose(ours, plain, atol=1e-3 * float(plain.abs().max()))


def test_sizes_that_are_no_multiple_of_8_are_rounded_down(node, vae):
    latent = run_node(node("TemporalUNetContinueVideo"), torch.rand(2, 67, 70, 3), vae, 3, 127, 6)[2]["samples"]
    assert latent.shape == (3, 4, 8, 8)


def test_nan_names_the_node(node, vae, video):
    video[-1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="Continue Video: video holds NaN"):
        run_node(node("TemporalUNetContinueVideo"), video, vae, 6, 127, 6)


def test_a_noise_level_that_is_no_number_is_refused(node, vae, video):
    with pytest.raises(ValueError, match="Continue Video: augmentation_level is NaN, expected a finite number"):
        run_node(node("TemporalUNetContinueVideo"), video, vae, 6, 127, 6, augmentation_level=float("nan"))


def test_the_repeated_frame_is_dropped(node, video):
    more = torch.cat([video[-1:], torch.rand(3, 64, 72, 3)])
    joined = run_node(node("TemporalUNetJoinVideo"), video, more)[0]
    assert torch.equal(joined, torch.cat([video, more[1:]]))


def test_a_continuation_without_drift_is_left_as_it_is(node, video):
    more = torch.cat([video[-1:], torch.rand(3, 64, 72, 3)])
    assert torch.allclose(run_node(node("TemporalUNetJoinVideo"), video, more, match_colors=True)[0][5:], more[1:], atol=1e-5)


def test_a_drift_in_color_and_contrast_is_taken_back(node, video):
    video = 0.3 + 0.4 * video
    true = torch.cat([video[-1:], 0.3 + 0.4 * torch.rand(3, 64, 72, 3)])
    drifted = (true - 0.5) * 1.2 + torch.tensor([0.55, 0.5, 0.45])
    assert torch.allclose(run_node(node("TemporalUNetJoinVideo"), video, drifted, match_colors=True)[0][5:], true[1:], atol=1e-4)


def test_a_flat_frame_does_not_blow_up_contrast(node, video):
    flat = torch.full((3, 64, 72, 3), 0.5)
    joined = run_node(node("TemporalUNetJoinVideo"), video, flat, match_colors=True)[0]
    assert torch.allclose(joined[5:], video[-1].mean((0, 1)), atol=1e-4)


def test_another_size_is_refused(node, video):
    found = "Join Video: the video's frames are 72x64, those of the continuation 64x64, expected the same"
    with pytest.raises(ValueError, match=found):
        run_node(node("TemporalUNetJoinVideo"), video, torch.rand(2, 64, 64, 3))
