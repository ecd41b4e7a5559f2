"""Continue Video: prepares a clip that goes on from where another ended."""

import torch
from comfy_api.latest import io

from .bridge.inputs.continuation import clip_size, log_other_rate
from .bridge.inputs.image_to_video import NOT_CONNECTED, ClipSettings, check_pixels, prepare
from .bridge.inputs.images import frames_in
from .bridge.inputs.ranges import in_schema, passes
from .bridge.node_names import CONTINUE_VIDEO as NODE
from .bridge.sampling.colors import matched


class ContinueVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetContinueVideo",
            display_name=NODE,
            category="Temporal UNet/Video",
            description="Prepares the next clip of a video: it starts from the last frame. Sample it with triangle guidance, "
            "then join it on with Join Video.",
            search_aliases=["extend video", "long video", "chain video", "svd continue"],
            inputs=[
                io.MultiType.Input(
                    "video", [io.Image, io.Video],
                    tooltip="The video so far; its last frame becomes the first of the next clip. Sides that are no multiple of "
                    "8 are stretched down to one; Join Video stretches the clip back.",
                ),
                io.Vae.Input("vae", tooltip="The VAE of the SVD checkpoint, or another with SD 1's latent space."),
                io.Int.Input(
                    "video_frames", default=14, min=2, max=4096,
                    tooltip="Frames of the next clip. The first repeats the last of the video and is dropped by Join Video.",
                ),
                io.Int.Input(
                    "motion_bucket_id", default=127, min=1, max=1023,
                    tooltip="How much moves: 40 is calm, 127 natural, 200 lively; above that things fall apart.",
                ),
                io.Int.Input("fps", default=6, min=1, max=1024, tooltip="The frame rate given to the model."),
                io.Float.Input(
                    "augmentation_level", default=0.0, min=0.0, max=10.0, step=0.01, advanced=True, optional=True,
                    tooltip="Noise added to the last frame before encoding: a little hides artifacts that the clip before has "
                    "left. 0 to 0.1 is usual.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, advanced=True, optional=True,
                    tooltip="Seed of the augmentation noise; without augmentation it changes nothing.",
                ),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="The image encoder of the SVD checkpoint."),
                io.Boolean.Input(
                    "keep_colors", default=True, advanced=True, optional=True,
                    tooltip="The next clip starts with the colors and contrast of the video's first frame, or they would grow "
                    "from clip to clip. Off where the scene has become brighter, darker or another.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent"),
                io.Float.Output(display_name="fps"),
            ],
        )

    @classmethod
    def validate_inputs(cls, augmentation_level=None):
        return passes(NODE, lambda: in_schema(NODE, cls.define_schema(), augmentation_level=augmentation_level))

    @classmethod
    def execute(
        cls, video, vae, video_frames, motion_bucket_id, fps, augmentation_level=0.0, seed=0, clip_vision=NOT_CONNECTED,
        keep_colors=True,
    ) -> io.NodeOutput:
        frames = frames_in(NODE, "video", video)
        log_other_rate(NODE, video, fps)
        first, last = frames[0], frames[-1:]
        check_pixels(NODE, "video", torch.cat([first[None], last]) if keep_colors else last)
        image = matched(last, last[0], first) if keep_colors else last
        clip = ClipSettings(
            *clip_size(NODE, frames), video_frames, motion_bucket_id, fps, augmentation_level, seed, resize="stretch",
        )
        return io.NodeOutput(*prepare(NODE, image, vae, clip_vision, clip), float(fps))
