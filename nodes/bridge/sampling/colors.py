"""Colors and contrast of a clip or an image, matched to those of another."""

import torch

MOST = 1.5  # the largest factor on contrast, up or down: a nearly flat image has none to compare


def matched(frames: torch.Tensor, seen: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`frames` [t, h, w, c] with the change that gives `seen` [h, w, c] the mean and deviation of `wanted` [h, w, c].

    All in 0..1, each channel by itself. After Reinhard et al. 2001, "Color Transfer between Images", without its color space.
    """
    wanted = wanted.to(seen)
    contrast = (wanted.std((0, 1)) / seen.std((0, 1)).clamp(min=1e-6)).clamp(1 / MOST, MOST)
    return ((frames - seen.mean((0, 1))) * contrast + wanted.mean((0, 1))).clamp(0, 1)


def matched_latent(latent: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`latent` [..., h, w] with the mean and deviation over h and w of `wanted`, of the same shape.

    After Huang and Belongie 2017, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization".
    """
    mean, deviation = latent.mean((-2, -1), keepdim=True), latent.std((-2, -1), keepdim=True)
    contrast = wanted.std((-2, -1), keepdim=True) / deviation.clamp(min=1e-6)
    return (latent - mean) * contrast.clamp(1 / MOST, MOST) + wanted.mean((-2, -1), keepdim=True)
