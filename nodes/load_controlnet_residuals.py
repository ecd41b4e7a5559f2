"""Load ControlNet Residuals: what a ControlNet adds to the UNet, from a file."""

import hashlib
from pathlib import Path

import folder_paths
from comfy.model_management import processing_interrupted
from comfy_api.latest import io

from ..unet import UNetFileError, read_residuals
from .bridge.info.model_files import residuals_path
from .bridge.inputs.ranges import passes
from .bridge.node_names import LOAD_RESIDUALS as NODE
from .socket_types import Residuals


class LoadControlNetResiduals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetLoadControlNetResiduals",
            display_name=NODE,
            category="Temporal UNet/ControlNet",
            description="Reads residuals from a safetensors file in ComfyUI's input folder.",
            search_aliases=["import controlnet residuals"],
            inputs=[
                io.Combo.Input(
                    "residuals_name", options=_input_files(),
                    tooltip="A .safetensors file in the input folder with the tensors controls.0, controls.1, …",
                ),
            ],
            outputs=[Residuals.Output(display_name="residuals")],
        )

    @classmethod
    def execute(cls, residuals_name) -> io.NodeOutput:
        path = residuals_path(NODE, residuals_name)
        try:
            return io.NodeOutput(read_residuals(path))
        except UNetFileError as error:
            raise ValueError(f"{NODE}: {error}") from None

    @classmethod
    def fingerprint_inputs(cls, residuals_name):
        """A hash of the file's content; NaN, which equals nothing, where it cannot be known yet.

        The host asks before every run, for every node in it, also for those that it has not validated. An error raised here
        would be lost, and an interrupt would end the host's worker: NaN is returned, and the next node acts on the interrupt.
        """
        if residuals_name is None:  # named by another node
            return float("nan")
        digest = hashlib.sha256()
        with open(residuals_path(NODE, residuals_name), "rb") as file:
            while chunk := file.read(2**20):
                if processing_interrupted():
                    return float("nan")
                digest.update(chunk)
        return digest.hexdigest()

    @classmethod
    def validate_inputs(cls, residuals_name):
        if residuals_name is None:  # named by another node: known when the node runs
            return True
        return passes(NODE, lambda: residuals_path(NODE, residuals_name))


def _input_files() -> list[str]:
    folder = Path(folder_paths.get_input_directory())
    return sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
