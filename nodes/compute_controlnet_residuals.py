"""Compute ControlNet Residuals: what a ControlNet adds to the UNet, as a value."""

from comfy_api.latest import io

from ..unet import ControlResiduals
from .bridge.control.compute_residuals import compute_residuals, refuse_controlnext
from .bridge.control.frame_control import FrameControl
from .bridge.control.pairing import family_name
from .bridge.inputs.images import control_images
from .bridge.inputs.ranges import finite, in_schema, passes
from .bridge.node_names import COMPUTE_RESIDUALS as NODE
from .socket_types import Residuals


class ComputeControlNetResiduals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetComputeControlNetResiduals",
            display_name=NODE,
            category="Temporal UNet/ControlNet",
            description="Runs a ControlNet once and gives what it adds to the UNet, to be applied in any number of runs.",
            search_aliases=["controlnet residuals", "precompute controlnet"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will be controlled: its noise levels and latent are used."),
                io.Conditioning.Input("positive", tooltip="The prompt, or for video the image, that the ControlNet sees."),
                io.ControlNet.Input("control_net", tooltip="A ControlNet of the model's own family; no T2I-Adapter."),
                io.MultiType.Input(
                    "image", [io.Image, io.Video],
                    tooltip="The control images: one for all frames, or one per frame, such as a video. Of fewer the last one "
                    "stays; of more the first are used.",
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
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, advanced=True, optional=True,
                    tooltip="Seed of the noise that is added to the latent. It changes the residuals little.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Only for ControlNets that take their image as a latent."),
            ],
            outputs=[Residuals.Output(display_name="residuals")],
        )

    @classmethod
    def validate_inputs(cls, percent=None):
        return passes(NODE, lambda: in_schema(NODE, cls.define_schema(), percent=percent))

    @classmethod
    def execute(
        cls, model, positive, control_net, image, latent_image, percent=0.2, seed=0, vae=None
    ) -> io.NodeOutput:
        finite(NODE, percent=percent)
        if control_net is None:
            raise ValueError(f"{NODE}: control_net is empty. Connect a ControlNet loader.")
        if len(positive) != 1:
            raise ValueError(f"{NODE}: positive holds {len(positive)} prompts, expected 1. Connect one that is not combined.")
        refuse_controlnext(positive[0][1].get("control"))
        images = control_images(NODE, image)
        inner = control_net.copy().set_cond_hint(images, 1.0, (0.0, 1.0), vae=vae)
        control = FrameControl(NODE, inner, images)
        controls, sigma = compute_residuals(
            model, [[positive[0][0], {**positive[0][1], "control": control}]], latent_image, percent, seed
        )
        about = {
            "family": family_name(model.model), "model": type(model.model.model_config).__name__,
            "model_channels": str(model.model.model_config.unet_config["model_channels"]),
            "percent": str(percent), "sigma": f"{sigma:.6g}",
        }
        return io.NodeOutput(ControlResiduals(tuple(controls), about))
