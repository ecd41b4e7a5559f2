"""`dev.py run` as a user calls it: a photo in, a video file out, its place in the last line; all without a network."""

import re
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import dev
from support.client import LARGE
from support.offline import run_offline

pytestmark = pytest.mark.slow

OWN_HOSTS = {"127.0.0.1", "::1", "localhost"}
SMALL = ["--frames", "3", "--steps", "1", "--width", "128", "--height", "64"]


@pytest.fixture
def checkpoint(host):
    """An SVD checkpoint in the real layout with the real image encoder; its UNet has fewer channels."""
    return dev.untrained_models(host, *LARGE) / "checkpoints" / "untrained_svd_checkpoint.safetensors"


def called(host, out, *options):
    """`dev.py run` as a process that has ended, and the hosts that it and its server looked for. There is no network."""
    command = [sys.executable, dev.ROOT / "dev.py", "run", "--comfyui", host.folder, "--python", sys.executable, "--out", out]
    return run_offline([*command, *options], out.with_suffix(".addresses"), capture_output=True, text=True, timeout=600)


def run(host, out, *options):
    """The frames [t, h, w, 3] of the video that the command says it made, 0 to 255, and what else it said."""
    done, hosts = called(host, out, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert hosts <= OWN_HOSTS
    path = Path(done.stdout.splitlines()[-1])
    assert path.parent == out
    with av.open(path) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(float), done.stdout


def test_run_shows_the_sprite_fly_where_it_truly_does(host, tmp_path):
    video, _ = run(host, tmp_path / "out")
    truth = np.asarray(Image.open(dev.demo_models(host) / "true.png").convert("RGB")).astype(float)
    truth = np.stack(np.split(truth, len(video), axis=1))
    assert video.shape == truth.shape == (8, 128, 128, 3)
    off, still = (np.square(frames - truth)[1:].mean() for frames in (video, truth[:1]))
    assert off < still / 2  # 3 dB, after the loss of the video codec


def test_run_takes_a_photo_by_its_content_warns_of_the_miniature_before_it_starts_and_shows_the_steps(host, tmp_path):
    photo = tmp_path / "mine.dat"
    Image.new("RGB", (300, 200), "teal").save(photo, "PNG")
    video, said = run(host, tmp_path / "out", "--image", photo, *SMALL)
    assert video.shape == (3, 64, 128, 3)
    shown = r"will not come to life.*Starting ComfyUI.*Load Checkpoint\n.*Sampler: step 1 of 1 in \d+ s\n.*Save Video\n"
    assert re.search(shown, said, re.DOTALL)


def test_run_names_a_file_that_it_cannot_use_before_a_server_starts(host, tmp_path):
    file = tmp_path / "svd.safetensors"
    file.write_text("# Notes\nSVD is a model that makes videos.\n" * 50)
    done, _ = called(host, tmp_path / "out", "--svd", file)
    assert done.returncode == 1 and f"{file.name}: it is not a safetensors file" in done.stderr
    assert "Starting" not in done.stdout and "Traceback" not in done.stderr


def test_run_takes_an_svd_checkpoint_in_the_real_layout_with_its_image_encoder(host, checkpoint, tmp_path):
    video, _ = run(host, tmp_path / "out", "--svd", checkpoint, *SMALL, "--max-cfg", "1")
    assert video.shape == (3, 64, 128, 3)
