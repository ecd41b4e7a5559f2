"""Networks of two levels, for behavior that does not depend on the family's full layout."""

import functools
from dataclasses import replace

import torch

from support.families import TINY, random_weights
from unet import UNetModel

_TWO_LEVELS = {
    "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": (1, 1), "depth_in": (1, 1), "depth_out": (1,) * 4,
    "self_attention": (True, True), "context_dim": 24, "head_channels": 16, "num_heads": None,
}
SVD = replace(TINY["svd"], **_TWO_LEVELS)
ONE_LEVEL = replace(  # SVD's quickest call: for runs of many
    SVD, channel_mult=(1,), num_res_blocks=(1,), depth_in=(1,), depth_out=(1, 1), self_attention=(True,), head_channels=32
)
SD = replace(TINY["sd2"], **_TWO_LEVELS)
CLASSES = replace(SD, num_classes=10)  # y is a class index, as in the x4 upscaler
SKIPS = 4  # of each: the first convolution, a residual block, a downsampling, a residual block


_weights = functools.cache(lambda config, dtype: random_weights(config, dtype=dtype))


def build(config, dtype=torch.float32):
    """A network of its own on the same random weights each time."""
    model = UNetModel(config, dtype=dtype, device="meta")
    model.load_state_dict({name: value.clone() for name, value in _weights(config, dtype).items()}, assign=True)
    return model.requires_grad_(False).eval()


def skip_shapes(rows, height, width):
    """Shapes of the residuals of one of these networks: those of the skips, then the middle's."""
    half = (height + 1) // 2, (width + 1) // 2
    return [(rows, 32, height, width)] * 2 + [(rows, 32, *half), (rows, 64, *half), (rows, 64, *half)]


def controls(rows, height=8, width=8, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in skip_shapes(rows, height, width)]
