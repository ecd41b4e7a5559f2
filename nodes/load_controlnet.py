"""Load ControlNet: a file of any ControlNet of the family to a CONTROL_NET."""

from pathlib import Path

from comfy_api.latest import io

from ..unet import ControlNeXt, SVDControlNet, find_controlnet
from .bridge.control.controlnext_control import load_controlnext
from .bridge.control.hosts_controlnet import load_hosts_controlnet
from .bridge.control.svd_control import load_svd_controlnet
from .bridge.info.file_checks import check_controlnet
from .bridge.info.file_info import describe_controlnet_file, no_controlnet
from .bridge.info.model_files import controlnet_names, controlnet_path
from .bridge.node_names import LOAD_CONTROLNET as NODE


class LoadControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetControlNetLoader",
            display_name=NODE,
            category="Temporal UNet/Loaders",
            description="Loads a ControlNet: those of Stable Video Diffusion, ControlNeXt too, and all that the host loads.",
            search_aliases=["load controlnet model", "svd controlnet", "controlnet video", "temporal controlnet", "controlnext"],
            inputs=[
                io.Combo.Input(
                    "control_net_name", options=controlnet_names(),
                    tooltip="A file from models/controlnet. Its kind is detected from its content.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(display_name="control_net"),
                io.String.Output(display_name="info", tooltip="What was found in the file, as text."),
            ],
        )

    @classmethod
    async def validate_inputs(cls, control_net_name=None):
        return await check_controlnet(control_net_name)

    @classmethod
    def execute(cls, control_net_name: str) -> io.NodeOutput:
        path = controlnet_path(control_net_name)
        network = find_controlnet(path)
        if network is SVDControlNet:
            control = load_svd_controlnet(path)
        elif network is ControlNeXt:
            control = load_controlnext(path)
        else:
            control = load_hosts_controlnet(path)
        if control is None:
            raise ValueError(f"{NODE}: {no_controlnet(Path(path))}")
        return io.NodeOutput(control, "\n".join(describe_controlnet_file(path, control)))
