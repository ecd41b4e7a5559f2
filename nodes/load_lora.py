"""Load LoRA: a LoRA file of any spelling onto a MODEL of the family, layers over time included."""

import logging

from comfy_api.latest import io

from ..unet.weights.lora_file import open_lora
from .bridge.info.file_checks import check_lora
from .bridge.info.lines import Line, text_of
from .bridge.info.lora_lines import lora_lines
from .bridge.info.model_files import lora_names, lora_path
from .bridge.inputs.ranges import finite
from .bridge.model.lora_patches import is_video, with_lora
from .bridge.node_names import LOAD_LORA as NODE


class LoadLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetLoraLoader",
            display_name=NODE,
            category="Temporal UNet/Loaders",
            description="Puts a LoRA on a model of Stable Diffusion 1, 2, XL or Stable Video Diffusion, on its temporal layers "
            "too, and says how many of its layers act.",
            search_aliases=["lora", "load lora", "lora loader", "lora model", "svd lora", "motion lora", "lycoris", "peft"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA changes. Several of these nodes may follow each other."),
                io.Combo.Input(
                    "lora_name", options=lora_names(),
                    tooltip="A file from models/loras: LoRA, LoHa, LoKr and others, as saved by kohya, LyCORIS, diffusers, PEFT or "
                    "ComfyUI.",
                ),
                io.Float.Input(
                    "strength_model", default=1.0, min=-100.0, max=100.0, step=0.01,
                    tooltip="How much the LoRA changes the model. 1: as it was trained. 0: not at all. Below 0: the opposite.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA."),
                io.String.Output(
                    display_name="info", tooltip="How many of the LoRA's layers act, and which ones do not, as text."
                ),
            ],
        )

    @classmethod
    async def validate_inputs(cls, lora_name=None):
        return await check_lora(lora_name)

    @classmethod
    def execute(cls, model, lora_name: str, strength_model: float) -> io.NodeOutput:
        finite(NODE, strength_model=strength_model)
        if strength_model == 0:
            return io.NodeOutput(model, str(Line("loraOff")))
        lora = open_lora(lora_path(lora_name))
        patched, reached = with_lora(model, lora, strength_model)
        text = text_of(lora_lines(lora, reached, is_video(model), strength_model))
        logging.info("%s: %s", NODE, text.replace("\n", "; "))
        return io.NodeOutput(patched, text)
