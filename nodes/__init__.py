"""The nodes of the pack, as the host asks for them."""

from comfy_api.latest import ComfyExtension, io

from .continue_video import ContinueVideo, JoinVideo
from .controlnet import ApplyControlNetResiduals
from .controlnet_loader import LoadControlNet
from .decode_video import DecodeVideo
from .loader import LoadUNet
from .svd_conditioning import SVDConditioning
from .svd_sampler import SVDSampler


class TemporalUNetExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadUNet, SVDConditioning, SVDSampler, DecodeVideo, ContinueVideo, JoinVideo, LoadControlNet,
            ApplyControlNetResiduals,
        ]


async def comfy_entrypoint() -> TemporalUNetExtension:
    return TemporalUNetExtension()
