"""Save UNet: a MODEL's network with its LoRAs, to a safetensors or GGUF file."""

from comfy_api.latest import io, ui

from ..unet import UNetFileError
from ..unet.weights.save_plan import DIALECTS, TYPES, Wanted
from .bridge.info.saving import file_metadata, save_network
from .bridge.node_names import SAVE_UNET as NODE


class SaveUNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetSave",
            display_name=NODE,
            category="Temporal UNet/Loaders",
            description="Writes a UNet with the LoRAs on it to a file in ComfyUI's output folder.",
            search_aliases=["save diffusion model", "export unet", "merge lora", "quantize", "gguf", "convert model"],
            inputs=[
                io.Model.Input("model", tooltip="A model of the family, from Load UNet or one of ComfyUI's own loaders."),
                io.String.Input(
                    "filename_prefix", default="diffusion_models/temporal_unet",
                    tooltip="Folder and beginning of the file's name in the output folder; a number is added.",
                ),
                io.Combo.Input(
                    "format", options=list(TYPES), default="safetensors",
                    tooltip="safetensors: fp16, bf16, fp32 or fp8. GGUF: fp16, bf16, fp32 or quantized (Q8_0 to Q4_0).",
                ),
                io.Combo.Input(
                    "type", options=list(dict.fromkeys(name for types in TYPES.values() for name in types)), default="fp16",
                    tooltip="How the weights are written. Q8_0 takes about half of fp16 and comes very close to it; Q5_1, Q5_0, "
                    "Q4_1 and Q4_0 take less and come less close. Norms and biases are not quantized.",
                ),
                io.Combo.Input(
                    "dialect", options=list(DIALECTS), default=DIALECTS[0], advanced=True, optional=True,
                    tooltip="For GGUF. comfy: convolutions are quantized, too; the smallest file, for Load UNet and ComfyUI-GGUF. "
                    "sdcpp: convolutions stay fp16, for stable-diffusion.cpp.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, format=None, type=None):
        if format is None or type is None:  # linked: execute looks at them
            return True
        try:
            Wanted(format, type)
        except UNetFileError as error:
            return f"{NODE}: format {format} and type {type} do not go together: {error}"
        return True

    @classmethod
    def execute(cls, model, filename_prefix, format, type, dialect=DIALECTS[0]) -> io.NodeOutput:
        refused = cls.validate_inputs(format, type)
        if refused is not True:
            raise ValueError(refused)
        wanted = Wanted(format, type, dialect)
        file, subfolder = save_network(NODE, model, filename_prefix, wanted, file_metadata(cls.hidden))
        return io.NodeOutput(ui={"models": [ui.SavedResult(file, subfolder, io.FolderType.output)]})
