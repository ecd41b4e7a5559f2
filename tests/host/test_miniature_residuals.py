"""The trained miniature: residuals computed once lead the sprite as the net at every step does, and a mask confines them."""

import numpy as np
import pytest
import torch

from tools.bench import quality
from tools.miniature import world

pytestmark = [pytest.mark.slow, pytest.mark.one_host]

FRAMES, STEPS = world.FRAMES, 6


@pytest.fixture(scope="module")
def studio():
    with torch.inference_mode():
        return quality.Studio()


@pytest.fixture(scope="module")
def scene(studio):
    """(world, drawn path, positive, negative, latent) of a held-out world."""
    of = quality.held_out(1)[0]
    path, _ = world.drawn_path(of, world.HELD_OUT)
    with torch.inference_mode():
        return of, path, *studio.conditioning(of, FRAMES)


def video(studio, positive, negative, latent):
    samples = quality.node("TemporalUNetSVDSampler").execute(
        studio.model, positive, negative, latent, 0, STEPS, quality.MIN_CFG, quality.MAX_CFG, "linear", "euler", "karras"
    ).result[0]
    return studio.decode(samples)


def applied(scene, **source):
    """The video's conditioning under this control."""
    _, _, positive, negative, _ = scene
    return quality.node("TemporalUNetApplyControlNetResiduals").execute(positive, negative, **source).result


def test_residuals_of_one_noise_level_lead_the_sprite(studio, scene):
    of, path, positive, _, latent = scene
    images = torch.from_numpy(world.position_map(path))
    stored = quality.node("TemporalUNetComputeControlNetResiduals").execute(
        studio.model, positive, studio.controlnet, images, latent
    ).result[0]
    made = video(studio, *applied(scene, residuals=stored), latent)
    assert np.linalg.norm(quality.centres_of(made, of) - path, axis=1)[1:].mean() <= 4


def test_a_mask_confines_the_effect(studio, scene):
    """The path leads through the right of the image: a mask on the left keeps the right as it would be, one there does not."""
    _, path, positive, negative, latent = scene
    images = torch.from_numpy(world.position_map(path))
    edge = world.SIZE // 3
    left = torch.zeros(1, world.SIZE, world.SIZE)
    left[:, :, :edge] = 1
    free = video(studio, positive, negative, latent)

    def change(mask):
        """Of the right two thirds, by the control with this mask."""
        conds = applied(scene, control_net=studio.controlnet, image=images, mask=mask)
        return np.abs(video(studio, *conds, latent) - free)[1:, :, edge:].mean()

    full, outside, inside = change(None), change(left), change(1 - left)
    assert outside <= 0.1 * full
    assert inside >= 0.5 * full
