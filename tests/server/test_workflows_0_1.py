"""Every API workflow of version 0.1 runs as it stands, on small files without training, or the miniature's."""

import shutil

import av
import numpy as np
import pytest
from safetensors.torch import load_file

import dev
from support.prompts import FRAMES, SIZE, WORKFLOWS_0_1, example, only

NAMES = sorted(path.stem for path in (WORKFLOWS_0_1 / "api").glob("*.json"))
SAVERS = {name: {node["class_type"] for node in example(name).values()} & {"SaveVideo", "SaveImage"} for name in NAMES}
VIDEOS = [name for name in NAMES if SAVERS[name] == {"SaveVideo"}]
PICTURES = [name for name in NAMES if SAVERS[name] == {"SaveImage"}]
TO_FILE, FROM_FILE = "controlnet_residuals_to_file", "controlnet_residuals_from_file"


def write_video(path, frames):
    """A bright square that moves over gray; longer than the clip, as a user's own video is."""
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(frames):
            picture = np.full((64, 96, 3), 90, np.uint8)
            picture[20:44, 8 * index : 8 * index + 24] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode(None))


def read_video(path):
    """(frames, frames per second)"""
    with av.open(path) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)], file.streams.video[0].average_rate


@pytest.fixture(scope="module", autouse=True)
def files(host, server):
    """The miniature, and the control video that the examples name."""
    dev.link_models(dev.demo_models(host), server.base)
    write_video(server.base / "input" / "control.mp4", 2 * FRAMES)


@pytest.fixture(scope="module")
def residuals(server, files):
    """The file that one example writes, put where the other reads it, as the note asks the user to do."""
    prompt = example(TO_FILE)
    [saved] = server.run(prompt)["outputs"][only(prompt, "TemporalUNetSaveControlNetResiduals")]["residuals"]
    file = server.base / "output" / saved["subfolder"] / saved["filename"]
    read = example(FROM_FILE)
    shutil.copy(file, server.base / "input" / read[only(read, "TemporalUNetLoadControlNetResiduals")]["inputs"]["residuals_name"])
    return file


def test_all_seven_examples_are_there():
    assert sorted([*VIDEOS, *PICTURES, TO_FILE]) == NAMES
    assert len(VIDEOS) == 4 and len(PICTURES) == 2


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.slow
def test_a_video_example_makes_its_video(server, residuals, name):
    prompt = example(name)
    [path] = server.saved(server.run(prompt))
    frames, rate = read_video(path)
    assert path.suffix == ".mp4"
    assert [frame.shape for frame in frames] == [(SIZE, SIZE, 3)] * FRAMES
    assert rate == prompt[only(prompt, "TemporalUNetSVDConditioning")]["inputs"]["fps"]
    assert min(frame.std() for frame in frames) > 10, "a frame is flat"


@pytest.mark.slow
def test_the_file_example_writes_the_residuals_of_its_control_video(residuals):
    controls = load_file(residuals)
    assert sorted(controls) == [f"controls.{index}" for index in range(5)]  # the miniature's four skips and its middle
    assert {control.shape[0] for control in controls.values()} == {FRAMES}
    assert controls["controls.0"].shape[2:] == (SIZE // 8, SIZE // 8)
    for name, control in controls.items():
        assert (control[1:] - control[:-1]).abs().max() > 0, f"the video moves, {name} does not"


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.slow
def test_an_image_example_makes_its_image(server, name):
    [picture] = server.pictures(server.run(example(name)))
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.std() > 10, "the image is flat"


@pytest.mark.parametrize("name", NAMES)
def test_every_node_of_an_example_exists_and_has_a_title(node_info, name):
    for node in example(name).values():
        assert node["class_type"] in node_info
        assert node["_meta"]["title"]
