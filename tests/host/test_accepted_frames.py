"""What the inputs for frames take: images of any size and count of channels, and videos as nodes of the host give them."""

import io
import logging
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from support.memory_status import Peak, status
from support.oracle import run_node
from tools.untrained import VAE_SEED, vae_weights

CONDITIONING, CONTINUE, JOIN = "TemporalUNetSVDConditioning", "TemporalUNetContinueVideo", "TemporalUNetJoinVideo"


@pytest.fixture(scope="module")
def vae():
    import comfy.sd

    return comfy.sd.VAE(sd=vae_weights(VAE_SEED))


@pytest.fixture
def condition(node, vae):
    def run(image, width=64, height=64, **options):
        return run_node(node(CONDITIONING), image, vae, width, height, 3, 127, 6, **options)

    return run


def photo(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def as_video(images, fps=6):
    from comfy_api.latest import InputImpl, Types

    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(fps)))


def wav(samples):
    """A file of silence."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, samples, "NONE", ""))
        sound.writeframes(bytes(2 * samples))
    return file.getvalue()


def encoded(made):
    return made[0][0][1]["concat_latent_image"]


class Vision:
    """An image encoder whose embedding says nothing."""

    def encode_image(self, image, crop=True):
        return type("Embedding", (), {"image_embeds": torch.zeros(1, 1024)})


@pytest.mark.parametrize("width, height, shape", [(103, 57, (57, 103)), (71, 64, (50, 90)), (64, 79, (300, 11)), (20, 17, (9, 9))])
def test_any_size_is_rounded_as_the_host_rounds_it(node, vae, condition, caplog, width, height, shape):
    image = photo(1, *shape, 3)
    theirs = run_node(node("SVD_img2vid_Conditioning"), Vision(), image, vae, width, height, 3, 127, 6, 0.0)
    with caplog.at_level(logging.WARNING):
        ours = condition(image, width, height)
    assert torch.equal(encoded(ours), encoded(theirs))
    assert ours[2]["samples"].shape == theirs[2]["samples"].shape
    [line] = [record.message for record in caplog.records if "SVD Image to Video" in record.message]
    assert f"{width}x{height} is no multiple of 8; the video is made at {width // 8 * 8}x{height // 8 * 8}" in line


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 64), (64, 1), (1, 300), (1, 1)])
def test_an_image_of_one_row_or_column_is_taken(condition, mode, shape):
    assert encoded(condition(photo(1, *shape, 3), resize=mode)).isfinite().all()


def test_gray_and_alpha_are_taken(condition):
    gray = photo(1, 48, 80, 1)
    colored = encoded(condition(gray.expand(-1, -1, -1, 3)))
    assert torch.equal(encoded(condition(gray)), colored)
    alpha = torch.cat([gray.expand(-1, -1, -1, 3), photo(1, 48, 80, 1, seed=2)], -1)
    assert torch.allclose(encoded(condition(alpha)), colored, atol=1e-5)


@pytest.mark.parametrize("image, found", [
    (torch.zeros(0, 64, 64, 3), r"init_image has shape \[0, 64, 64, 3\], expected .images, height, width, 3. with at least one"),
    (torch.zeros(1, 64, 64, 2), r"init_image has shape \[1, 64, 64, 2\], expected"),
    (torch.zeros(1, 64, 0, 3), r"init_image has shape \[1, 64, 0, 3\], expected"),
])
def test_an_empty_or_odd_batch_is_one_error(condition, image, found):
    with pytest.raises(ValueError, match=f"^SVD Image to Video: {found}"):
        condition(image)


def test_a_size_below_the_latents_pixel_is_refused(condition):
    with pytest.raises(ValueError, match="^SVD Image to Video: found a size of 64x7 pixels, expected at least 8x8"):
        condition(photo(1, 64, 64, 3), 64, 7)


def test_of_a_video_or_several_images_the_first_is_used_and_logged(condition, caplog):
    frames = photo(3, 48, 80, 3)
    alone = encoded(condition(frames[:1]))
    for given in (frames, as_video(frames)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(encoded(condition(given)), alone)
        [line] = [record.message for record in caplog.records if "init_image" in record.message]
        assert "init_image holds 3 images; the first is used. For a clip of each, put Rebatch Images" in line


def test_rebatch_images_gives_each_image_alone(node, condition):
    frames = photo(2, 48, 80, 3)
    [alone] = run_node(node("RebatchImages"), [frames], [1])
    assert [encoded(condition(image)).tolist() for image in alone] == [encoded(condition(f[None])).tolist() for f in frames]


def test_the_frame_rate_comes_out_as_it_was_given(node, vae, condition):
    assert condition(photo(1, 64, 64, 3))[3] == 6.0
    assert run_node(node(CONTINUE), photo(2, 64, 64, 3), vae, 3, 127, 9)[3] == 9.0


def test_the_first_image_comes_with_the_positive_at_the_latents_size(condition):
    image = photo(1, 64, 72, 3)
    positive, negative = condition(image, 72, 64)[:2]
    expected = image.reshape(1, 8, 8, 9, 8, 3).mean((2, 4))
    assert torch.allclose(positive[0][1]["temporal_unet.first_image"], expected, atol=1e-6)
    assert "temporal_unet.first_image" not in negative[0][1]
    noisy = condition(image, 72, 64, augmentation_level=5.0, seed=1)[0][0][1]["temporal_unet.first_image"]
    assert 0 <= noisy.min() < noisy.max() <= 1 and not torch.allclose(noisy, expected, atol=0.1)


def test_continue_and_join_take_videos(node, vae, caplog):
    frames, more = photo(4, 64, 72, 3), photo(3, 64, 72, 3, seed=2)
    images = run_node(node(CONTINUE), frames, vae, 3, 127, 6)
    with caplog.at_level(logging.INFO):
        assert torch.equal(encoded(run_node(node(CONTINUE), as_video(frames), vae, 3, 127, 6)), encoded(images))
        assert "frames a second" not in caplog.text
        run_node(node(CONTINUE), as_video(frames, fps=24), vae, 3, 127, 6)
    assert "Continue Video: the video has 24 frames a second, the clip is made for the 6 of the input fps" in caplog.text
    assert torch.equal(run_node(node(JOIN), as_video(frames), as_video(more))[0], torch.cat([frames, more[1:]]))


@pytest.mark.parametrize("width, height", [(100, 60), (107, 64), (64, 71)])
def test_a_video_of_any_size_is_continued_and_joined_without_a_jump(node, vae, caplog, width, height):
    """A ramp of brightness from left to right and top to bottom lies where it lay, also in the clip that was stretched."""
    across, down = torch.linspace(0, 1, width), torch.linspace(0, 1, height)
    video = torch.stack([across.expand(height, -1), down[:, None].expand(-1, width), torch.full((height, width), 0.5)], -1)[None]
    with caplog.at_level(logging.WARNING):
        made = run_node(node(CONTINUE), video, vae, 3, 127, 6, keep_colors=False)
    rounded = f"{width // 8 * 8}x{height // 8 * 8}"
    assert f"Continue Video: {width}x{height} is no multiple of 8; the clip is made at {rounded}" in caplog.text
    first = made[0][0][1]["temporal_unet.first_image"]
    clip = torch.nn.functional.interpolate(video.movedim(-1, 1), (height // 8 * 8, width // 8 * 8), mode="bilinear").movedim(1, -1)
    assert torch.allclose(first, torch.nn.functional.avg_pool2d(clip.movedim(-1, 1), 8).movedim(1, -1), atol=1e-5)
    joined = run_node(node(JOIN), video, clip.expand(2, -1, -1, -1))[0]
    assert joined.shape == (2, height, width, 3) and torch.allclose(joined[1], joined[0], atol=0.02)
    assert f"Join Video: the continuation, {rounded}, is stretched to the video's {width}x{height}" in caplog.text


@pytest.mark.parametrize("content, reason", [
    (b"no video", "clip.mp4: Invalid data found when processing input"),
    (wav(8000), "No video stream found"),
])
@pytest.mark.parametrize("name", [CONDITIONING, CONTINUE, JOIN])
def test_a_video_that_cannot_be_read_is_named_by_node_and_input(node, vae, tmp_path, name, content, reason):
    from comfy_api.latest import InputImpl

    (tmp_path / "clip.mp4").write_bytes(content)
    video = InputImpl.VideoFromFile(str(tmp_path / "clip.mp4"))
    inputs = {CONDITIONING: (video, vae, 64, 64, 3, 127, 6), CONTINUE: (video, vae, 3, 127, 6), JOIN: (video, video)}
    title, said = node(name).define_schema().display_name, "video" if name != CONDITIONING else "init_image"
    message = rf"^{title}: {said} is a video that cannot be read \({reason}.*\)\. Choose another file"
    with pytest.raises(ValueError, match=message) as error:
        run_node(node(name), *inputs[name])
    assert "Errno" not in str(error.value)


@pytest.mark.parametrize("rate, delay", [(25, 0), (1, 0), (25, 3)])
def test_of_a_video_file_the_first_frame_is_taken_without_the_rest_in_memory(condition, tmp_path, rate, delay):
    from comfy_api.latest import InputImpl

    with av.open(tmp_path / "clip.mkv", "w") as file:
        stream = file.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 480, 480, "bgr0"
        for index in range(3 if delay else 75):  # 75 are 198 MiB as an IMAGE
            frame = av.VideoFrame.from_ndarray(np.full((480, 480, 3), 200 - index, np.uint8), "rgb24")
            frame.pts = index + delay * rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    expected = encoded(condition(torch.full((1, 480, 480, 3), 200 / 255)))
    before, watch = status("RssAnon"), Peak()
    made = encoded(condition(InputImpl.VideoFromFile(str(tmp_path / "clip.mkv"))))
    assert watch.stop() - before < 100  # MiB
    assert torch.allclose(made, expected, atol=0.02)


@pytest.mark.parametrize("height, width", [(7, 7), (4, 64)])
def test_a_video_too_small_to_go_on_from_is_refused_at_its_own_size(node, vae, height, width):
    with pytest.raises(ValueError, match=f"^Continue Video: the video's frames are {width}x{height}, expected at least 8x8"):
        run_node(node(CONTINUE), photo(2, height, width, 3), vae, 3, 127, 6)


def test_gray_and_alpha_are_joined_as_colors(node):
    gray, alpha = photo(2, 16, 16, 1), photo(3, 16, 16, 4)
    assert torch.equal(run_node(node(JOIN), gray, alpha)[0], torch.cat([gray.expand(-1, -1, -1, 3), alpha[1:, ..., :3]]))
