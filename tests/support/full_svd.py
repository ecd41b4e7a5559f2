"""SVD in its real size on the meta device, where nothing is computed and nothing needs memory."""

import functools

import torch

from support.live import peak_bytes
from unet import Hooks, UNetConfig, UNetModel

SVD = UNetConfig(
    in_channels=8, out_channels=4, model_channels=320, channel_mult=(1, 2, 4, 4), num_res_blocks=(2, 2, 2, 2),
    depth_in=(1, 1, 1, 1, 1, 1, 0, 0), depth_out=(0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1), depth_middle=1, context_dim=1024,
    linear_projection=True, self_attention=(True,) * 4, temporal=True, adm_channels=768,
)


class OutputOnly(Hooks):
    """Attention that costs its output alone, as the fused kernels of a GPU do; on the meta device nothing is computed."""

    def attention(self, q, k, v, heads):
        return torch.empty_like(q)


@functools.cache
def svd_peak(frames, budget, size=(72, 128)):
    """Peak live bytes of one call of the full SVD in fp16, without the weights and the call's own arguments."""
    net = UNetModel(SVD, dtype=torch.float16, device="meta")
    call = {
        "x": torch.empty(frames, 8, *size, dtype=torch.float16, device="meta"),
        "timesteps": torch.empty(frames, device="meta"),
        "context": torch.empty(frames, 1, 1024, dtype=torch.float16, device="meta"),
        "y": torch.empty(frames, 768, dtype=torch.float16, device="meta"),
    }
    with torch.no_grad():
        return peak_bytes(lambda: net(**call, budget=budget, hooks=OutputOnly()))
