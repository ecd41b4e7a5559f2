"""The host's layer classes for our networks: its own, except that plain layers may be computed in a quicker way."""

import comfy.ops

from ....unet.fused_linear import FusedLinear
from ....unet.quick_conv import QuickConv2d


class Operations(comfy.ops.disable_weight_init):
    """The host's layers for weights that are used as they are, which is what it picks for fp32 on a CPU."""

    class Linear(FusedLinear, comfy.ops.disable_weight_init.Linear, own=True):
        def is_plain(self):
            return _is_plain(self)

        def forward(self, *args, **kwargs):
            comfy.ops.run_every_op()  # ends an interrupted run
            return super().forward(*args, **kwargs)

    class Conv2d(QuickConv2d, comfy.ops.disable_weight_init.Conv2d, own=True):
        def is_plain(self):
            return _is_plain(self)

        def forward(self, *args, **kwargs):
            comfy.ops.run_every_op()
            return super().forward(*args, **kwargs)


def _is_plain(layer):
    return not (layer.comfy_cast_weights or layer.weight_function or layer.bias_function)


def with_quick_layers(operations):
    """What `comfy.ops.pick_operations` gave, or for plain layers `Operations`. All other kinds cast or quantize: they stay."""
    return Operations if operations is comfy.ops.disable_weight_init else operations
