"""Save ControlNet Residuals: what a ControlNet adds to the UNet, to a file."""

import json
import re
from pathlib import Path

from comfy.cli_args import args
from comfy_api.latest import io, ui

from .bridge.info.saving import save_residuals
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
        metadata = {"temporal_unet.version": _version(), **cls._workflow()}
        file, subfolder = save_residuals(NODE, residuals, filename_prefix, metadata)
        return io.NodeOutput(ui={"residuals": [ui.SavedResult(file, subfolder, io.FolderType.output)]})

    @classmethod
    def _workflow(cls) -> dict[str, str]:
        """The metadata that the host's own nodes write, so that the file can be dropped into the editor."""
        if args.disable_metadata or cls.hidden.prompt is None:
            return {}
        metadata = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        return {name: json.dumps(value) for name, value in metadata.items()}


def _version() -> str:
    """The pack's version, from pyproject.toml."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^version = "(.+)"', text, re.MULTILINE)[0]
