"""Takes: a clip that is made several times, each time with another seed. A latent holds them one after another."""

import logging
from dataclasses import dataclass

import comfy.sample
import torch

from ..node_names import SVD_SAMPLER

FRAMES = "temporal_unet.take_frames"  # key in a latent that holds several takes: the frames of each
SEEDS = 2**64


@dataclass(frozen=True)
class Take:
    """What one take starts from: a latent as the host has it, with as many frames as the take, and the seed of its noise."""

    latent: dict
    seed: int


def noise_of(take: Take) -> torch.Tensor:
    """The noise that the host's own samplers start from with its seed."""
    return comfy.sample.prepare_noise(take.latent["samples"], take.seed, take.latent.get("batch_index"))


def frames_of_takes(node: str, latent: dict) -> int:
    """How many frames each take in a latent has; of a latent without takes all of its frames.

    A latent that another node has cut so that takes no longer fit into it counts as one clip, with a line in the log that
    names `node`.
    """
    total = latent["samples"].shape[0]
    frames = latent.get(FRAMES, total)
    if total <= frames:
        return total
    if total % frames:
        logging.warning(
            "%s: the latent has %d frames, which are no whole takes of %d frames each; they count as one clip. Cut takes out whole "
            "with Latent From Batch.", node, total, frames)
        return total
    return frames


def takes_of(latent: dict, seed: int, count: int) -> list[Take]:
    """`count` takes of the clip in a latent with the seeds `seed`, `seed` + 1, …; where it holds takes, one of each.

    Raises ValueError where it holds takes and `count` is more than 1.
    """
    total, frames = latent["samples"].shape[0], frames_of_takes(SVD_SAMPLER, latent)
    given = total // frames
    if given > 1 < count:
        raise ValueError(
            f"{SVD_SAMPLER}: takes is {count}, but latent_image holds {given} takes already, and each of them is sampled once. Set "
            f"takes to 1, or take one out with Latent From Batch."
        )
    latents = [_cut(latent, slice(start, start + frames), total) for start in range(0, total, frames)] if given > 1 else [latent]
    seeds = [(seed + index) % SEEDS for index in range(max(given, count))]
    if len(seeds) > 1:
        logging.info("%s: %d takes of %d frames with the seeds %s.", SVD_SAMPLER, len(seeds), frames, ", ".join(map(str, seeds)))
    return [Take(latents[index % given], each) for index, each in enumerate(seeds)]


def _cut(latent, frames, total):
    """These frames of a latent of `total` frames, with what it holds for each frame."""
    per_frame = ("samples", "noise_mask", "batch_index")
    return {key: value[frames] if key in per_frame and len(value) == total else value for key, value in latent.items()}


def joined(latent: dict, takes: list[Take], samples) -> dict:
    """`latent` with the samples [takes * frames, 4, h, w] of the takes that were made of it."""
    out = {**latent, "samples": samples}
    if len(takes) == 1:
        out.pop(FRAMES, None)
        return out
    if len(latent.get("batch_index", ())) == samples.shape[0] // len(takes):
        out["batch_index"] = latent["batch_index"] * len(takes)
    return {**out, FRAMES: samples.shape[0] // len(takes)}
