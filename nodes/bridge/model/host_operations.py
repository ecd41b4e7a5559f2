"""The host's layer classes for our networks: its own, except that plain linear layers may run by oneDNN."""

import comfy.ops

from ....unet.fused_linear import FusedLinear


class Operations(comfy.ops.disable_weight_init):
    """The host's layers for weights that are used as they are, which is what it picks for fp32 on a CPU."""

    class Linear(FusedLinear, comfy.ops.disable_weight_init.Linear):
        def is_plain(self):
            return not (self.comfy_cast_weights or self.weight_function or self.bias_function)

        def forward(self, *args, **kwargs):
            comfy.ops.run_every_op()  # ends an interrupted run
            return super().forward(*args, **kwargs)


def with_onednn(operations):
    """What `comfy.ops.pick_operations` gave, or for plain layers `Operations`. All other kinds cast or quantize: they stay."""
    return Operations if operations is comfy.ops.disable_weight_init else operations
