"""The layout of the blocks, as a config gives it, against the networks that are built."""

import pytest

from support.families import TINY
from unet import UNetModel
from unet.layers import Downsample, ResBlock, Upsample


def check(block, layout, depths):
    """A block's layers are those of its layout, `depths` the transformer depths of its path."""
    layers = list(block)
    if layout.residual is not None:
        res = layers.pop(0)
        assert isinstance(res, ResBlock)
        assert res.in_layers[0].num_channels == layout.in_channels and res.out_channels == layout.channels
        depth = depths[layout.residual]
        if depth:
            assert len(layers.pop(0).transformer_blocks) == depth
    if layout.resampling == "down":
        down = layers.pop(0)
        assert isinstance(down, Downsample) and down.op.in_channels == layout.in_channels
    if layout.resampling == "up":
        up = layers.pop(0)
        assert isinstance(up, Upsample) and up.conv.in_channels == layout.channels
    assert not layers


@pytest.mark.parametrize("name", TINY)
def test_the_layout_is_that_of_the_network(name):
    config = TINY[name]
    model = UNetModel(config, device="meta")
    first, *inputs = config.input_layout()
    assert (first.level, first.channels, first.residual) == (0, model.input_blocks[0][0].out_channels, None)
    assert len(inputs) + 1 == len(model.input_blocks) == config.num_skips
    for block, layout in zip(model.input_blocks[1:], inputs, strict=True):
        check(block, layout, config.depth_in)
    for block, layout in zip(model.output_blocks, config.output_layout(), strict=True):
        check(block, layout, config.depth_out)


def test_levels_are_halved_on_the_down_path_and_doubled_on_the_up_path():
    config = TINY["svd"]
    assert [block.level for block in config.input_layout()] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [block.level for block in config.output_layout()] == [3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
