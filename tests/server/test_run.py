"""`dev.py run` as a user calls it: a photo in, a video file out, its place in the last line."""

import subprocess
import sys
from pathlib import Path

import av
import dev
import pytest
from conftest import UNTRAINED, large_models

SMALL = ["--frames", "3", "--steps", "1", "--width", "128", "--height", "64"]


@pytest.fixture
def checkpoint(host, tmp_path):
    """An SVD checkpoint in the real layout: on the newest host at full size, on the others with fewer channels."""
    if f'"{dev.NEWEST}"' not in (host.folder / "comfyui_version.py").read_text():
        yield large_models(host) / "checkpoints" / "untrained_svd_checkpoint.safetensors"
        return
    command = [sys.executable, UNTRAINED, "--out", tmp_path, "--svd-checkpoint", "--full-size"]
    subprocess.run(command, check=True)
    made = tmp_path / "checkpoints" / "untrained_svd_checkpoint.safetensors"
    yield made
    made.unlink()  # 4.3 GB


def run(host, out, *options):
    """The video that the command says it made: number of frames and size."""
    command = [sys.executable, dev.ROOT / "dev.py", "run", "--comfyui", host.folder, "--python", sys.executable, "--out", out]
    done = subprocess.run([str(part) for part in [*command, *SMALL, *options]], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert path.parent == out
    with av.open(path) as video:
        frames = list(video.decode(video=0))
    return len(frames), (frames[0].width, frames[0].height)


def test_run_makes_a_video_of_the_photo(host, tmp_path):
    assert run(host, tmp_path / "out") == (3, (128, 64))


def test_run_takes_a_real_svd_checkpoint_with_its_image_encoder(host, checkpoint, tmp_path):
    assert run(host, tmp_path / "out", "--svd", checkpoint) == (3, (128, 64))
