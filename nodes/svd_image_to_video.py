"""SVD Image to Video: an image to the conditioning and the empty latent that Stable Video Diffusion starts from."""

from comfy_api.latest import io

from .bridge.inputs.image_to_video import NOT_CONNECTED, ClipSettings, check_pixels, prepare
from .bridge.inputs.images import first_frame
from .bridge.inputs.ranges import in_schema, passes
from .bridge.node_names import SVD_IMAGE_TO_VIDEO as NODE


class SVDConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetSVDConditioning",
            display_name=NODE,
            category="Temporal UNet/Video",
            description="Prepares an image for Stable Video Diffusion: the video starts from it.",
            search_aliases=[
                "image to video", "img2vid", "i2v", "svd", "stable video diffusion", "animate", "photo to video",
                "svd conditioning",
            ],
            inputs=[
                io.MultiType.Input(
                    "init_image", [io.Image, io.Video],
                    tooltip="The image that becomes the first frame. Of several images, or of a video, the first is used; for "
                    "a clip of each, put Rebatch Images with batch_size 1 between.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE of the SVD checkpoint (from Load Checkpoint), or another with SD 1's latent space.",
                ),
                io.Int.Input(
                    "width", default=1024, min=16, max=16384, step=8,
                    tooltip="Width of the video in pixels (best a multiple of 64), rounded down to a multiple of 8. SVD was "
                    "trained at 1024 x 576.",
                ),
                io.Int.Input(
                    "height", default=576, min=16, max=16384, step=8,
                    tooltip="Height of the video in pixels (best a multiple of 64), rounded down to a multiple of 8. Far from "
                    "576 the motion breaks.",
                ),
                io.Int.Input(
                    "video_frames", default=14, min=1, max=4096,
                    tooltip="Number of frames. SVD was trained on 14, SVD-XT on 25.",
                ),
                io.Int.Input(
                    "motion_bucket_id", default=127, min=1, max=1023,
                    tooltip="How much moves: 40 is calm, 127 natural, 200 lively; above that things fall apart.",
                ),
                io.Int.Input(
                    "fps", default=6, min=1, max=1024,
                    tooltip="The frame rate given to the model: less time between frames makes smaller steps.",
                ),
                io.Float.Input(
                    "augmentation_level", default=0.0, min=0.0, max=10.0, step=0.01, advanced=True, optional=True,
                    tooltip="Noise added to the image before encoding, in units of its range: frees the motion, "
                    "loses likeness. 0 to 0.1 is usual.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, advanced=True, optional=True,
                    tooltip="Seed of the augmentation noise; without augmentation it changes nothing.",
                ),
                io.Combo.Input(
                    "resize", options=["crop", "pad", "stretch"], default="crop", advanced=True, optional=True,
                    tooltip="How the image is fitted to width and height: cut off what is over, add black bars, or distort.",
                ),
                io.ClipVision.Input(
                    "clip_vision", optional=True,
                    tooltip="The image encoder of the SVD checkpoint (from Load Checkpoint). Without it the model sees "
                    "the first frame only through the latent, and the motion fits the image less.",
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
        cls, init_image, vae, width, height, video_frames, motion_bucket_id, fps,
        augmentation_level=0.0, seed=0, resize="crop", clip_vision=NOT_CONNECTED,
    ) -> io.NodeOutput:
        image = first_frame(NODE, "init_image", init_image)
        check_pixels(NODE, "init_image", image)
        clip = ClipSettings(width, height, video_frames, motion_bucket_id, fps, augmentation_level, seed, resize)
        return io.NodeOutput(*prepare(NODE, image, vae, clip_vision, clip), float(fps))
