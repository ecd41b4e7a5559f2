"""The nodes of the pack, as the host asks for them."""

import sys

from comfy_api.latest import ComfyExtension, io

from .apply_controlnet import ApplyControlNetResiduals
from .bridge.info.routes import add_routes
from .compute_controlnet_residuals import ComputeControlNetResiduals
from .continue_video import ContinueVideo
from .decode_video import DecodeVideo
from .feature_cache import FeatureCache
from .join_video import JoinVideo
from .load_checkpoint import LoadCheckpoint
from .load_controlnet import LoadControlNet
from .load_controlnet_residuals import LoadControlNetResiduals
from .load_lora import LoadLoRA
from .load_unet import LoadUNet
from .ray_pool import RayPool
from .save_controlnet_residuals import SaveControlNetResiduals
from .save_unet import SaveUNet
from .svd_image_to_video import SVDConditioning
from .svd_sampler import SVDSampler
from .video_options import VideoOptionsNode


class TemporalUNetExtension(ComfyExtension):
    async def on_load(self) -> None:
        if "server" not in sys.modules:  # a script that loads nodes without one
            return
        from server import PromptServer

        if hasattr(PromptServer, "instance"):
            add_routes(PromptServer.instance.routes)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadCheckpoint, LoadUNet, SaveUNet, LoadLoRA, FeatureCache, SVDConditioning, SVDSampler, VideoOptionsNode, DecodeVideo,
            ContinueVideo, JoinVideo, LoadControlNet, ApplyControlNetResiduals, ComputeControlNetResiduals, SaveControlNetResiduals,
            LoadControlNetResiduals, RayPool,
        ]


async def comfy_entrypoint() -> TemporalUNetExtension:
    return TemporalUNetExtension()
