"""Apply ControlNet Residuals: a ControlNet's residuals, or stored ones, on every frame, by strength, step, frame and region."""

from comfy_api.latest import io

from .bridge.control.frame_control import FrameControl
from .bridge.control.stored_control import StoredControl, as_residuals
from .bridge.inputs.curve import parse_curve
from .bridge.inputs.images import control_images, control_masks
from .bridge.inputs.ranges import finite, in_order, in_schema, numbers, passes
from .bridge.node_names import APPLY_RESIDUALS as NODE
from .socket_types import Residuals


class ApplyControlNetResiduals(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetApplyControlNetResiduals",
            display_name=NODE,
            category="Temporal UNet/ControlNet",
            description="Lets a ControlNet steer the sampling, with one control image for all frames or one for each, or with "
            "residuals that were computed before.",
            search_aliases=["controlnet video", "apply controlnet", "svd controlnet"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The conditioning that the control is added to."),
                io.Conditioning.Input("negative", tooltip="The conditioning that the control is added to."),
                io.ControlNet.Input(
                    "control_net", optional=True,
                    tooltip="A ControlNet or T2I-Adapter of the model's own family, with image. Empty where residuals are given.",
                ),
                io.MultiType.Input(
                    "image", [io.Image, io.Video], optional=True,
                    tooltip="The control images: one for all frames, or one per frame, such as a video. Of fewer the last one "
                    "stays for the rest of the clip; of more the first are used.",
                ),
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
                    "mask", optional=True,
                    tooltip="Where the control acts: 1 fully, 0 not at all; stretched over the image. One, or one per frame "
                    "(of fewer the last one stays, of more the first are used).",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Only for ControlNets that take their image as a latent."),
                Residuals.Input(
                    "residuals", optional=True,
                    tooltip="In place of control_net and image: residuals of one frame for all, or of each frame, added at every "
                    "step times the strength. From Compute or Load ControlNet Residuals.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def validate_inputs(cls, frame_strengths=None, start_percent=None, end_percent=None):
        def check():
            given = numbers(start_percent=start_percent, end_percent=end_percent)
            in_schema(NODE, cls.define_schema(), **given)
            in_order(NODE, **{"start_percent": 0.0, "end_percent": 1.0, **given})
            if frame_strengths is not None:
                _curve(frame_strengths)

        return passes(NODE, check)

    @classmethod
    def execute(
        cls, positive, negative, control_net=None, image=None, strength=1.0, start_percent=0.0, end_percent=1.0,
        frame_strengths="0:1.0", mask=None, vae=None, residuals=None,
    ) -> io.NodeOutput:
        finite(NODE, strength=strength, start_percent=start_percent, end_percent=end_percent)
        in_order(NODE, start_percent=start_percent, end_percent=end_percent)
        _check_source(control_net, image, residuals)
        curve = _curve(frame_strengths)
        if strength == 0:
            return io.NodeOutput(positive, negative)
        images = None if image is None else control_images(NODE, image)
        mask = None if mask is None else control_masks(NODE, mask)
        residuals = None if residuals is None else as_residuals(residuals)
        steps = start_percent, end_percent
        controls = {}  # previous control -> ours after it, one for positive and negative so that they run as a batch

        def control_after(previous):
            if previous not in controls:
                if residuals is None:
                    inner = control_net.copy().set_cond_hint(images, strength, steps, vae=vae)
                else:
                    inner = StoredControl(residuals, strength, steps)
                control = FrameControl(NODE, inner, inner.cond_hint_original, None if _flat(curve) else curve, mask)
                controls[previous] = control.set_previous_controlnet(previous)
            return controls[previous]

        def apply(conditioning):
            return [
                [c, {**extra, "control": control_after(extra.get("control")), "control_apply_to_uncond": False}]
                for c, extra in conditioning
            ]

        return io.NodeOutput(apply(positive), apply(negative))


def _curve(frame_strengths):
    return parse_curve(frame_strengths, f"{NODE}: frame_strengths")


def _check_source(control_net, image, residuals):
    """Exactly one source must be connected: a ControlNet with its image, or residuals."""
    given = {"control_net": control_net, "image": image, "residuals": residuals}
    connected = [name for name, value in given.items() if value is not None]
    if connected not in (["control_net", "image"], ["residuals"]):
        raise ValueError(
            f"{NODE}: found {' and '.join(connected) or 'nothing'}, expected either control_net and image, or residuals. "
            f"Connect what is missing (an empty control_net: choose another file in its loader), or disconnect the other."
        )


def _flat(curve):
    return all(value == 1 for _, value in curve)
