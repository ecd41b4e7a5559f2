"""Save ControlNet Residuals: what a ControlNet adds to the UNet, to a file."""

from comfy_api.latest import io, ui

from .bridge.info.saving import file_metadata, save_residuals
from .bridge.node_names import SAVE_RESIDUALS as NODE
from .socket_types import Residuals


class SaveControlNetResiduals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetSaveControlNetResiduals",
            display_name=NODE,
            category="Temporal UNet/ControlNet",
            description="Writes residuals to a safetensors file in ComfyUI's output folder.",
            search_aliases=["export controlnet residuals"],
            inputs=[
                Residuals.Input("residuals", tooltip="From Compute ControlNet Residuals."),
                io.String.Input(
                    "filename_prefix", default="residuals/ComfyUI",
                    tooltip="Folder and beginning of the file's name in the output folder; a number is added.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, residuals, filename_prefix="residuals/ComfyUI") -> io.NodeOutput:
        file, subfolder = save_residuals(NODE, residuals, filename_prefix, file_metadata(cls.hidden))
        return io.NodeOutput(ui={"residuals": [ui.SavedResult(file, subfolder, io.FolderType.output)]})
