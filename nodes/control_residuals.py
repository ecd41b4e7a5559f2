"""Compute, Save and Load ControlNet Residuals: what a ControlNet adds to the UNet, as a value and as a file."""

import hashlib
import json
import re
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy.model_management import processing_interrupted
from comfy_api.latest import io, ui

from ..unet import ControlResiduals, UNetFileError, read_residuals
from .bridge.control.compute_residuals import NODE as COMPUTE
from .bridge.control.compute_residuals import compute_residuals, refuse_controlnext
from .bridge.control.frame_control import FrameControl
from .bridge.info.model_files import residuals_path
from .bridge.inputs.ranges import finite
from .bridge.control.pairing import family_name
from .bridge.inputs.images import control_images
from .bridge.info.saving import save_residuals

LOAD = "Load ControlNet Residuals"
SAVE = "Save ControlNet Residuals"
Residuals = io.Custom("CONTROL_RESIDUALS")


class ComputeControlNetResiduals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetComputeControlNetResiduals",
            display_name=COMPUTE,
            category="Temporal UNet",
            description="Runs a ControlNet once and gives what it adds to the UNet, to be applied in any number of runs.",
            search_aliases=["controlnet residuals", "precompute controlnet"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will be controlled: its noise levels and latent are used."),
                io.Conditioning.Input("positive", tooltip="The prompt, or for video the picture, that the ControlNet sees."),
                io.ControlNet.Input("control_net", tooltip="A ControlNet of the model's own family; no T2I-Adapter."),
                io.Image.Input(
                    "image", tooltip="The control images: one for all frames, or one per frame; of fewer the last one stays.",
                ),
                io.Latent.Input(
                    "latent_image", tooltip="The latent that will be sampled: its size, frames and what lies under the noise.",
                ),
                io.Float.Input(
                    "percent", default=0.2, min=0.0, max=1.0, step=0.01, advanced=True, optional=True,
                    tooltip="Noise level at which the ControlNet sees the latent, as share of the sampling: 0 most noise, 1 "
                    "none. Up to about 0.4 the residuals serve all steps.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=io.ControlAfterGenerate.fixed, advanced=True,
                    optional=True,
                    tooltip="Seed of the noise that is added to the latent. It changes the residuals little.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Only for ControlNets that take their image as a latent."),
            ],
            outputs=[Residuals.Output(display_name="residuals")],
        )

    @classmethod
    def execute(
        cls, model, positive, control_net, image, latent_image, percent=0.2, seed=0, vae=None
    ) -> io.NodeOutput:
        finite(COMPUTE, percent=percent)
        if control_net is None:
            raise ValueError(f"{COMPUTE}: control_net is empty. Connect a ControlNet loader.")
        if len(positive) != 1:
            raise ValueError(f"{COMPUTE}: positive holds {len(positive)} prompts, expected 1. Connect one that is not combined.")
        refuse_controlnext(positive[0][1].get("control"))
        images = control_images(COMPUTE, image)
        inner = control_net.copy().set_cond_hint(images, 1.0, (0.0, 1.0), vae=vae)
        control = FrameControl(COMPUTE, inner, images)
        controls, sigma = compute_residuals(
            model, [[positive[0][0], {**positive[0][1], "control": control}]], latent_image, percent, seed
        )
        about = {
            "family": family_name(model.model), "model": type(model.model.model_config).__name__,
            "model_channels": str(model.model.model_config.unet_config["model_channels"]),
            "percent": str(percent), "sigma": f"{sigma:.6g}",
        }
        return io.NodeOutput(ControlResiduals(tuple(controls), about))


class SaveControlNetResiduals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetSaveControlNetResiduals",
            display_name=SAVE,
            category="Temporal UNet",
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
        file, subfolder = save_residuals(SAVE, residuals, filename_prefix, metadata)
        return io.NodeOutput(ui={"residuals": [ui.SavedResult(file, subfolder, io.FolderType.output)]})

    @classmethod
    def _workflow(cls) -> dict[str, str]:
        """What the host's own nodes keep in a file, so that it can be dropped into the editor."""
        if args.disable_metadata or cls.hidden.prompt is None:
            return {}
        parts = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
        return {name: json.dumps(part) for name, part in parts.items()}


class LoadControlNetResiduals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetLoadControlNetResiduals",
            display_name=LOAD,
            category="Temporal UNet",
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
        path = residuals_path(LOAD, residuals_name)
        try:
            return io.NodeOutput(read_residuals(path))
        except UNetFileError as error:
            raise ValueError(f"{LOAD}: {error}") from None

    @classmethod
    def fingerprint_inputs(cls, residuals_name):
        """Changes with the file's content; NaN, which equals nothing, where that is not known.

        The host asks before every run, for every node in it, also for those that it has not validated. An error or an
        interrupt that left this function would be lost, or end the host's worker: it acts on an interrupt at the next node.
        """
        if residuals_name is None:  # named by another node
            return float("nan")
        digest = hashlib.sha256()
        with open(residuals_path(LOAD, residuals_name), "rb") as file:
            while part := file.read(2**20):
                if processing_interrupted():
                    return float("nan")
                digest.update(part)
        return digest.hexdigest()

    @classmethod
    def validate_inputs(cls, residuals_name):
        if residuals_name is None:  # named by another node: known when the node runs
            return True
        try:
            residuals_path(LOAD, residuals_name)
        except ValueError as error:
            return str(error)
        return True


def _input_files() -> list[str]:
    folder = Path(folder_paths.get_input_directory())
    return sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())


def _version() -> str:
    """The pack's, as pyproject.toml says."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^version = "(.+)"', text, re.MULTILINE)[1]
