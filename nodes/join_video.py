"""Join Video: puts a clip after the one that it goes on from."""

import torch
from comfy_api.latest import io

from .bridge.node_names import JOIN_VIDEO as NODE
from .bridge.sampling.colors import matched


class JoinVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetJoinVideo",
            display_name=NODE,
            category="Temporal UNet/Video",
            description="Puts the clip of Continue Video after the video that it goes on from.",
            search_aliases=["extend video", "long video", "concatenate video", "append video"],
            inputs=[
                io.Image.Input("video", tooltip="The video that the clip goes on from, all frames."),
                io.Image.Input("continuation", tooltip="The next clip, whose first frame repeats the video's last."),
                io.Boolean.Input(
                    "match_colors", default=False, advanced=True, optional=True,
                    tooltip="Shifts colors and contrast of the next clip so that its first frame looks like the video's "
                    "last: for clips whose colors jump at the joint.",
                ),
            ],
            outputs=[io.Image.Output(display_name="video")],
        )

    @classmethod
    def execute(cls, video, continuation, match_colors=False) -> io.NodeOutput:
        if video.shape[1:] != continuation.shape[1:]:
            raise ValueError(
                f"{NODE}: the video's frames are {_size(video)}, those of the continuation {_size(continuation)}. "
                f"Connect the clip that Continue Video made from this video."
            )
        if match_colors:
            continuation = matched(continuation, continuation[0], video[-1])
        return io.NodeOutput(torch.cat([video, continuation[1:].to(video)]))


def _size(images):
    return f"{images.shape[2]}x{images.shape[1]} with {images.shape[3]} channels"
