"""The registry's package on a bare host: no models, no repository; the miniature, and README's ways without the editor."""
import re
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

import dev
from support.packed import bare_server, package  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bare(host, package, tmp_path_factory):  # noqa: F811
    with bare_server(host.folder, host.python, tmp_path_factory.mktemp("bare"), package) as server:
        yield server


def snippet(language: str) -> str:
    """README's code of the section "Without the editor"."""
    section = (dev.ROOT / "README.md").read_text(encoding="utf-8").partition("## Without the editor")[2].partition("\n## ")[0]
    [code] = re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return code


def frames(path):
    with av.open(path) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(float)


@pytest.mark.parametrize("language, program, said, turn", [
    ("sh", ["sh", "-c"], '"queue_remaining": 1', None),
    ("python", [sys.executable, "-c"], "step 14 of 14", Image.Transpose.ROTATE_180),  # another photo, of which nothing is cached
], ids=["curl", "python"])
def test_readmes_code_makes_the_miniatures_video_from_the_package_alone(bare, host, language, program, said, turn):
    folder = bare.base / "custom_nodes" / dev.PACK
    (folder / "video.mp4").unlink(missing_ok=True)
    with Image.open(dev.demo_models(host) / "first_frame.png") as first:
        photo = first.convert("RGB") if turn is None else first.convert("RGB").transpose(turn)
    photo.save(folder / "photo.png")
    code = snippet(language).replace("127.0.0.1:8188", f"127.0.0.1:{bare.port}")
    done = subprocess.run([*program, code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
    video = frames(folder / "video.mp4")
    assert video.shape == (8, 128, 128, 3)
    assert np.abs(video[0] - np.asarray(photo)).mean() < 12, "it does not start with the photo"
    assert np.abs(video[-1] - video[0]).mean() > 2, "nothing moves"
