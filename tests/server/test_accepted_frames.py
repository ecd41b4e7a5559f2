"""Videos and several photos on the server: where frames come in, and with the frame rate that goes on to the video's file."""

import av
import numpy as np
import pytest

from support.prompts import FRAMES, UNTRAINED, node, only, svd
from support.stand_ins import write_video


def test_a_video_is_taken_as_its_frames_are_and_its_rate_goes_on(server):
    write_video(server.base / "input" / "photo.png", server.base / "input" / "control.mp4", frames=3)
    settings = {"width": 64, "height": 64, "video_frames": 3, "motion_bucket_id": 127, "fps": 7}
    prompt = {
        "video": node("LoadVideo", file="control.mp4"),
        "frames": node("GetVideoComponents", video=["video", 0]),
        "vae": node("VAELoader", vae_name=UNTRAINED["VAELoader", "vae_name"]),
        "first": node("TemporalUNetSVDConditioning", init_image=["video", 0], vae=["vae", 0], **settings),
        "joined": node("TemporalUNetJoinVideo", video=["video", 0], continuation=["video", 0]),
        "apart": node("TemporalUNetJoinVideo", video=["frames", 0], continuation=["frames", 0]),
        "saved": node("SaveImage", images=["joined", 0], filename_prefix="joined"),
        "expected": node("SaveImage", images=["apart", 0], filename_prefix="apart"),
        "made": node("CreateVideo", images=["joined", 0], fps=["first", 3]),
        "file": node("SaveVideo", video=["made", 0], filename_prefix="joined", format="auto", codec="auto"),
    }
    outputs = server.run(prompt)["outputs"]
    joined, expected = (server.pictures({"outputs": {name: outputs[name]}}) for name in ("saved", "expected"))
    assert len(joined) == 5 and np.array_equal(joined, expected)
    [file] = server.saved({"outputs": {"file": outputs["file"]}})
    with av.open(file) as video:
        assert video.streams.video[0].average_rate == 7


@pytest.mark.slow
def test_rebatch_images_makes_a_clip_of_each_photo(server):
    prompt = svd(seed=3)
    conditioning, photo = only(prompt, "TemporalUNetSVDConditioning"), only(prompt, "LoadImage")
    alone = server.pictures(server.run(prompt))
    prompt |= {
        "other": node("ImageInvert", image=[photo, 0]),
        "both": node("ImageBatch", image1=["other", 0], image2=[photo, 0]),
        "each": node("RebatchImages", images=["both", 0], batch_size=1),
    }
    prompt[conditioning]["inputs"]["init_image"] = ["each", 0]
    pictures = server.pictures(server.run(prompt))
    assert len(pictures) == 2 * FRAMES and np.array_equal(pictures[FRAMES:], alone)
    assert not np.array_equal(pictures[:FRAMES], alone)
