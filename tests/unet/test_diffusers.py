"""Our SVD network against diffusers' UNetSpatioTemporalConditionModel on the same weights."""

import pytest
import torch

from support import formulas
from support.diffusers_names import to_diffusers
from support.families import TINY, inputs, random_weights, relative_error
from unet import UNetModel

CONFIG = TINY["svd"]


@pytest.fixture(scope="module")
def networks():
    import diffusers  # which takes seconds

    weights = random_weights(CONFIG)
    ours = UNetModel(CONFIG, device="meta")
    ours.load_state_dict(weights, assign=True)
    theirs = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(64, 128, 256, 256), num_attention_heads=(1, 2, 4, 4), in_channels=8, out_channels=4,
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=768, cross_attention_dim=1024,
        layers_per_block=2,
    )
    theirs.load_state_dict({to_diffusers(name): value for name, value in weights.items()})
    for name, module in theirs.named_modules():
        # Stability's eps in residual blocks is 1e-5; diffusers has 1e-6 in those of the blocks with attention.
        if isinstance(module, torch.nn.GroupNorm) and ".resnets." in name:
            module.eps = 1e-5
    return ours.requires_grad_(False).eval(), theirs.requires_grad_(False).eval()


def compare(networks, frames, size=(8, 8)):
    """The relative error on two videos whose fps, motion bucket and augmentation differ."""
    ours, theirs = networks
    call = inputs(CONFIG, frames=frames, batch=2, size=size)
    call["context"] = call["context"][::frames].repeat_interleave(frames, dim=0)  # diffusers has one a video
    ids = torch.tensor([[6.0, 127.0, 0.02], [24.0, 30.0, 0.5]])
    y = torch.stack([torch.cat([formulas.sinusoids(float(number), 256) for number in row]) for row in ids])
    call["y"] = y.float().repeat_interleave(frames, dim=0)
    expected = theirs(
        call["x"].unflatten(0, (2, frames)), call["timesteps"][::frames], call["context"][::frames], ids
    ).sample
    return relative_error(ours(**call, num_frames=frames), expected.flatten(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 3, 14])
def test_two_videos_equal_diffusers(networks, frames):
    assert compare(networks, frames) <= 1e-4


@pytest.mark.slow
def test_odd_sizes_equal_diffusers(networks):
    assert compare(networks, 3, size=(9, 15)) <= 1e-4
