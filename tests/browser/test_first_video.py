"""A newcomer's first videos, from the registry's package on a bare host: the miniature's, and one of a model that is missing."""

import itertools
import shutil
import sys
from urllib.parse import quote

import av
import pytest

from support.editor import RENDERERS, Editor
from support.packed import bare_server, package  # noqa: F401 (a fixture)
from support.stand_ins import write_svd
from tools.environments import PACK
from tools.server import failure

pytestmark = pytest.mark.slow

FIRST, MINIATURE = "1 Image to Video", "6 Try it without a download"
TIMEOUT = 400  # seconds, for 1.3 GB of zeros on a busy machine
seeds = itertools.count(1)
LISTEN = """() => {
    window.previews = 0
    app.api.addEventListener('temporal_unet.preview', () => previews++)
}"""
SHOWN = """() => {
    const sampler = app.graph._nodes.find((node) => node.type === 'TemporalUNetSVDSampler')
    const {element} = sampler.widgets.find((widget) => widget.name.startsWith('moving_preview'))
    return element.getBoundingClientRect().height > 20
}"""


@pytest.fixture(scope="module")
def bare(host, browser, package, tmp_path_factory):  # noqa: F811
    base = tmp_path_factory.mktemp("bare")
    (base / "input").mkdir()
    shutil.copy(host / "input" / "example.png", base / "input")  # every host brings it
    with bare_server(host, sys.executable, base, package, cpu=True) as server:
        yield server


@pytest.fixture(params=RENDERERS)
def newcomer(request, browser, bare):
    (bare.base / "input" / "temporal_unet_miniature.png").unlink(missing_ok=True)
    (bare.base / "models" / "checkpoints" / "svd.safetensors").unlink(missing_ok=True)
    editor = Editor(browser, bare, request.param)
    editor.page.evaluate(LISTEN)
    yield editor
    editor.page.close()
    assert editor.problems == []


def open_template(editor, name):
    editor.load_template(editor.server.get(f"/api/workflow_templates/{PACK}/{quote(name)}.json"), name)


def run_to_video(editor, clip, **sampler):
    """The frames of the video that Run makes, after it has shown a moving preview."""
    entry = editor.server.wait(editor.run({
        "TemporalUNetSVDConditioning": clip, "TemporalUNetSVDSampler": {"seed": next(seeds), **sampler},
    }), timeout=TIMEOUT)
    assert failure(entry) is None
    assert editor.page.evaluate("() => previews") > 0
    editor.page.wait_for_function(SHOWN)
    [saved] = [item for output in entry["outputs"].values() for item in output.get("images", [])]
    with av.open(str(editor.server.base / saved["type"] / saved["subfolder"] / saved["filename"])) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_the_miniature_makes_a_video_with_nothing_downloaded_and_no_photo_at_hand(newcomer):
    assert not (newcomer.server.base / "input" / "temporal_unet_miniature.png").exists(), "written before anybody asked for it"
    open_template(newcomer, MINIATURE)
    assert newcomer.page.get_by_test_id("error-overlay").count() == 0
    frames = run_to_video(newcomer, {})
    assert [frame.shape for frame in frames] == [(128, 128, 3)] * 8
    assert abs(frames[-1].astype(float) - frames[0]).mean() > 2, "nothing moves"


@pytest.mark.parametrize("newcomer", ["nodes2"], indirect=True)  # what it asks is the same in both
def test_the_first_template_asks_for_one_file_offers_its_download_and_then_makes_a_video(newcomer):
    page = newcomer.page
    open_template(newcomer, FIRST)
    page.get_by_test_id("error-overlay").get_by_text("svd.safetensors is missing").wait_for()
    page.get_by_test_id("error-overlay-see-errors").click()
    page.get_by_test_id("missing-model-download").wait_for()
    assert page.get_by_test_id("missing-model-download").count() == 1
    write_svd(newcomer.server.base / "models" / "checkpoints" / "svd.safetensors")
    page.get_by_test_id("missing-model-header-refresh").click()
    page.get_by_test_id("missing-model-download").wait_for(state="detached")
    frames = run_to_video(newcomer, {"width": 64, "height": 64, "video_frames": 3}, steps=4)
    assert [frame.shape for frame in frames] == [(64, 64, 3)] * 3
    assert max(frame.std() for frame in frames) > 1  # something is in it
