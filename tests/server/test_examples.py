"""Every example workflow is posted to the real server as it stands, on untrained files and at a small size."""

import av
import pytest
from prompts import EXAMPLES, FRAMES, SIZE, example, only

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.json"))
VIDEOS = [name for name in NAMES if name.endswith("_to_video")]
PICTURES = [name for name in NAMES if name not in VIDEOS]


def test_all_four_examples_are_there():
    assert len(VIDEOS) == 2 and len(PICTURES) == 2


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_example_makes_its_video(server, name):
    prompt = example(name)
    [path] = server.saved(server.run(prompt))
    with av.open(path) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        rate = video.streams.video[0].average_rate
    assert path.suffix == ".mp4"
    assert [frame.shape for frame in frames] == [(SIZE, SIZE, 3)] * FRAMES
    assert rate == prompt[only(prompt, "TemporalUNetSVDConditioning")]["inputs"]["fps"]
    assert min(frame.std() for frame in frames) > 10, "a frame is flat"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_example_makes_its_picture(server, name):
    [picture] = server.pictures(server.run(example(name)))
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.std() > 10, "the picture is flat"


@pytest.mark.parametrize("name", NAMES)
def test_every_node_of_an_example_exists_and_has_a_title(node_info, name):
    for node in example(name).values():
        assert node["class_type"] in node_info
        assert node["_meta"]["title"]
