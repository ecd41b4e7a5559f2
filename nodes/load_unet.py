"""Load UNet: a file of any member of the family to a MODEL."""

from comfy_api.latest import io

from ..unet import open_checkpoint
from .bridge.info.describe import describe
from .bridge.info.file_checks import check_unet
from .bridge.info.model_files import WEIGHT_DTYPES, unet_names, unet_path
from .bridge.model.unet_loader import load_checkpoint
from .bridge.node_names import LOAD_UNET


class LoadUNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetLoader",
            display_name=LOAD_UNET,
            category="Temporal UNet/Loaders",
            description="Loads the UNet of Stable Diffusion 1, 2, XL or Stable Video Diffusion out of a file of any kind.",
            search_aliases=["unet", "unet loader", "load diffusion model", "svd", "stable video diffusion"],
            inputs=[
                io.Combo.Input(
                    "unet_name", options=unet_names(),
                    tooltip="A file from models/diffusion_models or models/diffusers (safetensors, .ckpt, GGUF, diffusers' "
                    "layout), or a full checkpoint from models/checkpoints, of which only the UNet is read.",
                ),
                io.Combo.Input(
                    "weight_dtype", options=list(WEIGHT_DTYPES), default="default", advanced=True, optional=True,
                    tooltip="How the weights are kept in memory. default: what suits your card. fp16 and bf16 take half "
                    "the memory of fp32; fp8 takes a quarter and changes the image slightly; _fast also computes in "
                    "fp8 where the card can.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(display_name="info", tooltip="Family, parameters, dtype, file and memory, as text."),
            ],
        )

    @classmethod
    async def validate_inputs(cls, unet_name=None):
        return await check_unet(unet_name)

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str = "default") -> io.NodeOutput:
        checkpoint = open_checkpoint(unet_path(unet_name))
        model = load_checkpoint(checkpoint, WEIGHT_DTYPES[weight_dtype])
        return io.NodeOutput(model, describe(checkpoint, model))
