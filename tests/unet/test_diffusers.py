"""Our SVD network against diffusers' UNetSpatioTemporalConditionModel on the same weights."""

import re

import pytest
import torch

from support import formulas
from support.families import TINY, inputs, random_weights, relative_error
from unet import UNetModel

diffusers = pytest.importorskip("diffusers")

CONFIG = TINY["svd"]

RES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}
STEM = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}


def to_diffusers(name):
    """A tensor's name in diffusers for its name on disk."""
    layer, _, parameter = name.rpartition(".")
    if layer in STEM:
        return f"{STEM[layer]}.{parameter}"
    kind, rest = re.match(r"(input_blocks|middle_block|output_blocks)\.(.*)", name).groups()
    if kind == "middle_block":
        part, rest = rest.split(".", 1)
        if part == "1":
            return "mid_block.attentions.0." + transformer(rest)
        return f"mid_block.resnets.{int(part) // 2}." + res_block(rest)
    number, part, rest = rest.split(".", 2)
    if kind == "input_blocks":
        level, place = divmod(int(number) - 1, 3)
        block = f"down_blocks.{level}."
        if rest.startswith("op."):
            return block + "downsamplers.0.conv." + parameter
    else:
        level, place = divmod(int(number), 3)
        block = f"up_blocks.{level}."
        if rest.startswith("conv."):
            return block + "upsamplers.0.conv." + parameter
    if part == "0":
        return f"{block}resnets.{place}." + res_block(rest)
    return f"{block}attentions.{place}." + transformer(rest)


def res_block(name):
    if name.startswith("time_mixer."):
        return name
    side = "temporal_res_block." if name.startswith("time_stack.") else "spatial_res_block."
    layer, _, parameter = name.removeprefix("time_stack.").rpartition(".")
    return f"{side}{RES[layer]}.{parameter}"


def transformer(name):
    name = re.sub(r"^time_stack\.", "temporal_transformer_blocks.", name)
    name = name.replace("time_pos_embed.0.", "time_pos_embed.linear_1.")
    return name.replace("time_pos_embed.2.", "time_pos_embed.linear_2.")


@pytest.fixture(scope="module")
def networks():
    weights = random_weights(CONFIG)
    ours = UNetModel(CONFIG)
    ours.load_state_dict(weights)
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


@pytest.mark.parametrize("frames", [1, 3, 14])
def test_two_videos_equal_diffusers(networks, frames):
    assert compare(networks, frames) <= 1e-4


def test_odd_sizes_equal_diffusers(networks):
    assert compare(networks, 3, size=(9, 15)) <= 1e-4
