"""Apply ControlNet Residuals: a ControlNet's residuals on every frame, by strength, step, frame and region."""

from comfy_api.latest import io

from .bridge.control import FLAT, FrameControl
from .bridge.curve import parse_curve

NODE = "Apply ControlNet Residuals"


class ApplyControlNetResiduals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetApplyControlNetResiduals",
            display_name=NODE,
            category="Temporal UNet",
            description="Lets a ControlNet steer the sampling, with one control image for all frames or one for each.",
            search_aliases=["apply controlnet", "controlnet video"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The conditioning that the control is added to."),
                io.Conditioning.Input("negative", tooltip="The conditioning that the control is added to."),
                io.ControlNet.Input("control_net", tooltip="A ControlNet or T2I-Adapter of the model's own family."),
                io.Image.Input("image", tooltip="The control images: one for all frames, or one per frame."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=10.0, step=0.01,
                    tooltip="How strongly the control image steers. 0 is bit-equal to no ControlNet.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Share of the sampling after which the control begins.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                    tooltip="Share of the sampling after which the control ends.",
                ),
                io.String.Input(
                    "frame_strengths", default="0:1.0", advanced=True, optional=True,
                    tooltip="Factor on the strength over the clip: position:value points, 0 first frame, 1 last, such as "
                    "0:1, 0.5:0.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Where the control acts: 1 fully, 0 not at all. One, or one per frame.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Only for ControlNets that take their image as a latent."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def execute(
        cls, positive, negative, control_net, image, strength, start_percent, end_percent,
        frame_strengths="0:1.0", mask=None, vae=None,
    ) -> io.NodeOutput:
        if control_net is None:
            raise ValueError(f"{NODE}: control_net is empty. Connect a ControlNet loader.")
        curve = parse_curve(frame_strengths, f"{NODE}: frame_strengths")
        if strength == 0:
            return io.NodeOutput(positive, negative)
        images = image.movedim(-1, 1)
        controls = {}  # one for each that was applied before, shared by positive and negative so that they run as a batch

        def control_after(previous):
            if previous not in controls:
                inner = control_net.copy().set_cond_hint(images, strength, (start_percent, end_percent), vae=vae)
                control = FrameControl(inner, images, FLAT if _flat(curve) else curve, mask)
                controls[previous] = control.set_previous_controlnet(previous)
            return controls[previous]

        def apply(conditioning):
            return [
                [c, {**extra, "control": control_after(extra.get("control")), "control_apply_to_uncond": False}]
                for c, extra in conditioning
            ]

        return io.NodeOutput(apply(positive), apply(negative))


def _flat(curve):
    return all(value == 1 for _, value in curve)
