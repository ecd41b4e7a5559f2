"""Colours and contrast of a clip or a picture, brought to those of another."""

import torch

MOST = 1.5  # by which contrast is raised, or lowered, at most: a nearly flat picture tells nothing of it


def matched(frames: torch.Tensor, seen: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`frames` [t, h, w, c] changed as makes `seen` have the mean and deviation of `wanted` ([h, w, c], in each channel).

    After Reinhard et al. 2001, "Color transfer between images", in the channels as they are; 0 to 1 in and out.
    """
    wanted = wanted.to(seen)
    contrast = (wanted.std((0, 1)) / seen.std((0, 1)).clamp(min=1e-6)).clamp(1 / MOST, MOST)
    return ((frames - seen.mean((0, 1))) * contrast + wanted.mean((0, 1))).clamp(0, 1)


def matched_latent(latent: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`latent` [..., h, w] with the mean and deviation over h and w of `wanted`, of the same shape: the same, in latents.

    After Huang and Belongie 2017, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization".
    """
    mean, deviation = latent.mean((-2, -1), keepdim=True), latent.std((-2, -1), keepdim=True)
    contrast = wanted.std((-2, -1), keepdim=True) / deviation.clamp(min=1e-6)
    return (latent - mean) * contrast.clamp(1 / MOST, MOST) + wanted.mean((-2, -1), keepdim=True)
