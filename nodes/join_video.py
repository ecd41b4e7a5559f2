"""Join Video: puts a clip after the one that it goes on from."""

import torch
from comfy_api.latest import io

from .bridge.inputs.continuation import fitted
from .bridge.inputs.images import frames_in
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
                io.MultiType.Input("video", [io.Image, io.Video], tooltip="The video that the clip goes on from, all frames."),
                io.MultiType.Input(
                    "continuation", [io.Image, io.Video],
                    tooltip="The next clip, whose first frame repeats the video's last. Where the video's sides are no multiple "
                    "of 8, the clip is stretched to them.",
                ),
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
        frames = frames_in(NODE, "video", video)
        clip = fitted(NODE, frames_in(NODE, "continuation", continuation), frames)
        if match_colors:
            clip = matched(clip, clip[0], frames[-1])
        return io.NodeOutput(torch.cat([frames, clip[1:].to(frames)]))
