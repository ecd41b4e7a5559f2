"""Video Options: what few videos need of the sampler's settings, in a node of its own."""

from comfy_api.latest import io

from .bridge.inputs.ranges import numbers, passes
from .bridge.node_names import VIDEO_OPTIONS as NODE
from .bridge.sampling.options import DEFAULTS, HAND_OVERS, LIMITS, VideoOptions
from .socket_types import VideoOptions as VideoOptionsSocket


class VideoOptionsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetVideoOptions",
            display_name=NODE,
            category="Temporal UNet/Video",
            description="Settings of SVD Temporal UNet Sampler for long and looping clips, and the steps in which it guides.",
            search_aliases=["long video", "loop", "context windows", "svd options"],
            inputs=option_inputs(),
            outputs=[VideoOptionsSocket.Output(display_name="options")],
        )

    @classmethod
    def validate_inputs(cls, window_frames=None, window_overlap=None, guidance_start=None, guidance_end=None):
        """True, or what is wrong. A linked input is None: what it will be contradicts nothing yet."""
        given = numbers(
            window_frames=window_frames, window_overlap=window_overlap, guidance_start=guidance_start, guidance_end=guidance_end
        )
        return passes(NODE, lambda: VideoOptions(**{"window_overlap": 0, **given}).check(NODE))

    @classmethod
    def execute(cls, **options) -> io.NodeOutput:
        chosen = VideoOptions(**options)
        chosen.check(NODE)
        return io.NodeOutput(chosen)


def option_inputs(**every) -> list[io.Input]:
    """An input for each field of `VideoOptions`; `every` is given to all of them."""
    return [
        io.Int.Input(
            "window_frames", **_numbers("window_frames"), **every,
            tooltip="Longer clips are worked on in windows of this many frames. 0: as many as the model was trained on "
            "(25 where the file does not say).",
        ),
        io.Int.Input(
            "window_overlap", **_numbers("window_overlap"), **every,
            tooltip="Frames that neighboring windows share; more makes smoother joints and takes longer. With "
            "window_frames 0 at most half of a window.",
        ),
        io.Boolean.Input(
            "closed_loop", default=DEFAULTS.closed_loop, **every,
            tooltip="In clips longer than a window: windows also run over the end into the start, so that the clip loops.",
        ),
        io.Boolean.Input(
            "keep_colors", default=DEFAULTS.keep_colors, **every,
            tooltip="In clips longer than a window: each window starts with the colors and contrast of the image, or "
            "they would grow from window to window. Off where the scene is to become brighter, darker or another.",
        ),
        io.Float.Input(
            "guidance_start", **_numbers("guidance_start"), step=0.01, **every,
            tooltip="Share of the steps after which guidance begins. Unguided steps leave out the negative: half the work.",
        ),
        io.Float.Input(
            "guidance_end", **_numbers("guidance_end"), step=0.01, **every,
            tooltip="Share of the steps after which guidance ends. Unguided steps leave out the negative: half the work.",
        ),
        io.Combo.Input(
            "hand_over", options=list(HAND_OVERS), default=DEFAULTS.hand_over, advanced=True, **{**every, "optional": True},
            tooltip="In clips longer than a window: the step that a window's first image comes from. With previous step all "
            "windows of a step can run at the same time, for more devices than this step keeps at work. The video is another one: "
            "100 frames of the bundled miniature came 0.6 dB less like the true ones, 32 frames no less.",
        ),
    ]


def _numbers(name):
    least, most = LIMITS[name]
    return {"default": getattr(DEFAULTS, name), "min": least, "max": most}
