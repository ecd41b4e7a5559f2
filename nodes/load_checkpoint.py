"""Load Checkpoint: a full checkpoint of any member of the family to MODEL, CLIP, VAE and CLIP_VISION."""

import logging

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..unet import open_checkpoint
from .bridge.info.describe import describe
from .bridge.info.file_checks import check_checkpoint
from .bridge.info.model_files import WEIGHT_DTYPES, checkpoint_names, checkpoint_path
from .bridge.model.checkpoint_parts import lacking, load_parts, parts_in
from .bridge.model.unet_loader import load_checkpoint
from .bridge.node_names import LOAD_CHECKPOINT


class LoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetCheckpointLoader",
            display_name=LOAD_CHECKPOINT,
            category="Temporal UNet/Loaders",
            description="Loads all that a checkpoint of Stable Video Diffusion or Stable Diffusion 1, 2 or XL holds: model, text "
            "encoder, VAE and image encoder.",
            search_aliases=[
                "load checkpoint", "checkpoint loader", "svd", "stable video diffusion", "image to video", "img2vid",
                "image only checkpoint loader",
            ],
            inputs=[
                io.Combo.Input(
                    "ckpt_name", options=checkpoint_names(),
                    tooltip="A file from models/checkpoints (safetensors, .ckpt, GGUF), such as svd_xt.safetensors.",
                ),
                io.Combo.Input(
                    "weight_dtype", options=list(WEIGHT_DTYPES), default="default", advanced=True, optional=True,
                    tooltip="How the model's weights are kept in memory. default: what suits your card. fp16 and bf16 take half "
                    "the memory of fp32; fp8 takes a quarter and changes the image slightly; _fast also computes in "
                    "fp8 where the card can.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip", tooltip="The text encoder; video models have none."),
                io.Vae.Output(display_name="vae"),
                io.ClipVision.Output(display_name="clip_vision", tooltip="The image encoder, which video checkpoints bring."),
                io.String.Output(display_name="info", tooltip="Family, parameters, dtype, file, memory and parts, as text."),
            ],
        )

    @classmethod
    async def validate_inputs(cls, ckpt_name=None):
        return await check_checkpoint(ckpt_name)

    @classmethod
    def execute(cls, ckpt_name: str, weight_dtype: str = "default") -> io.NodeOutput:
        checkpoint = open_checkpoint(checkpoint_path(ckpt_name))
        parts = load_parts(checkpoint)  # first: with --disable-mmap the host reads the whole file for it
        model = load_checkpoint(checkpoint, WEIGHT_DTYPES[weight_dtype])
        outputs = [_blocked(checkpoint, name) if part is None else part for name, part in vars(parts).items()]
        return io.NodeOutput(model, *outputs, describe(checkpoint, model, parts_in(checkpoint)))


def _blocked(checkpoint, name):
    """In place of a part that the file lacks: where it is used the host reports the sentence, but over a websocket alone."""
    sentence = lacking(checkpoint, name)
    logging.info("%s Nodes that use the output %s do not run.", sentence, name)
    return ExecutionBlocker(sentence)
