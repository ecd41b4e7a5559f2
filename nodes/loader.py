"""Load UNet: a file of any member of the family to a MODEL."""

import folder_paths
import torch
from comfy_api.latest import io

from ..unet import open_checkpoint
from .bridge.info import describe
from .bridge.loader import load_checkpoint

CHECKPOINTS = "checkpoints/"
WEIGHT_DTYPES = {
    "default": {},
    "fp32": {"dtype": torch.float32},
    "fp16": {"dtype": torch.float16},
    "bf16": {"dtype": torch.bfloat16},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


class LoadUNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = folder_paths.get_filename_list("diffusion_models")
        names = names + [CHECKPOINTS + name for name in folder_paths.get_filename_list("checkpoints")]
        return io.Schema(
            node_id="TemporalUNetLoader",
            display_name="Load UNet",
            category="Temporal UNet",
            description="Loads the UNet of Stable Diffusion 1, 2, XL or Stable Video Diffusion out of a .safetensors file.",
            search_aliases=["load diffusion model", "svd", "unet loader"],
            inputs=[
                io.Combo.Input(
                    "unet_name", options=names,
                    tooltip="A .safetensors file from models/diffusion_models, or a full checkpoint from "
                    "models/checkpoints, of which only the UNet is read.",
                ),
                io.Combo.Input(
                    "weight_dtype", options=list(WEIGHT_DTYPES), default="default", advanced=True, optional=True,
                    tooltip="How the weights are kept in memory. default: what suits your card. fp16 and bf16 take half "
                    "the memory of fp32; fp8 takes a quarter and changes the picture slightly; _fast also computes in "
                    "fp8 where the card can.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(display_name="info", tooltip="Family, parameters, dtype, file and memory, as text."),
            ],
        )

    @classmethod
    def execute(cls, unet_name: str, weight_dtype: str = "default") -> io.NodeOutput:
        folder, name = "diffusion_models", unet_name
        if unet_name.startswith(CHECKPOINTS):
            folder, name = "checkpoints", unet_name.removeprefix(CHECKPOINTS)
        checkpoint = open_checkpoint(folder_paths.get_full_path_or_raise(folder, name))
        model = load_checkpoint(checkpoint, WEIGHT_DTYPES[weight_dtype])
        return io.NodeOutput(model, describe(checkpoint, model))
