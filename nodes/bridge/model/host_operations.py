"""The host's layer classes for our networks: its own, except that plain layers may be computed in a quicker way."""

import comfy.ops

from ....unet.fused_linear import FusedLinear
from ....unet.quick_conv import QuickConv2d
from .layer_weights import is_plain


class Operations(comfy.ops.disable_weight_init):
    """The host's layers for weights that are used as they are, which is what it picks for fp32 on a CPU."""

    class Linear(FusedLinear, comfy.ops.disable_weight_init.Linear, own=True):
        def is_plain(self):
            return is_plain(self)

        def forward(self, input):  # noqa: A002  # the host's name
            if not input.is_cpu:  # where a fast card waits for Python
                return comfy.ops.disable_weight_init.Linear.forward(self, input)
            comfy.ops.run_every_op()  # ends an interrupted run
            return super().forward(input)

    class Conv2d(QuickConv2d, comfy.ops.disable_weight_init.Conv2d, own=True):
        def is_plain(self):
            return is_plain(self)

        def forward(self, input):  # noqa: A002  # the host's name
            if not input.is_cpu:
                return comfy.ops.disable_weight_init.Conv2d.forward(self, input)
            comfy.ops.run_every_op()
            return super().forward(input)


def with_quick_layers(operations):
    """What `comfy.ops.pick_operations` gave, or for plain layers `Operations`. All other kinds cast or quantize: they stay."""
    return Operations if operations is comfy.ops.disable_weight_init else operations
