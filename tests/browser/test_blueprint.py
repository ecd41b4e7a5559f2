"""The blueprint "Image to Video (SVD)": listed by the server, found and added by hand on an empty canvas, and run to a video."""

import contextlib
import json
from pathlib import Path
from unittest.mock import patch

import av
import pytest
from playwright.sync_api import TimeoutError

from support.editor import Editor
from support.stand_ins import unet_shapes, write_hollow
from tools import untrained
from tools.server import failure

pytestmark = pytest.mark.slow

NAME = "Image to Video (SVD)"
PATH = Path(__file__).resolve().parents[2] / "subgraphs" / f"{NAME}.json"
CHECKPOINT = "hollow_svd.safetensors"  # of the layout by which the host knows SVD; only its autoencoder has weights
FRAMES, SIZE, FPS = 3, 64, 7
# Puts Load Image before the one subgraph node and Save Video after it.
CONNECT = """() => {
    const [blueprint] = app.graph._nodes
    const [photo, save] = ['LoadImage', 'SaveVideo'].map((type) => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        return node
    })
    photo.widgets.find((widget) => widget.name === 'image').value = 'example.png'
    photo.connect(0, blueprint, blueprint.findInputSlot('image'))
    blueprint.connect(blueprint.findOutputSlot('video'), save, save.findInputSlot('video'))
}"""
WIDGETS = "() => Object.fromEntries(app.graph._nodes[0].widgets.map((widget) => [widget.name, widget.value]))"
SET = """(values) => {
    for (const [name, value] of Object.entries(values)) {
        const widget = app.graph._nodes[0].widgets.find((widget) => widget.name === name)
        widget.value = value
        widget.callback?.(value)
    }
}"""


@pytest.fixture(scope="module")
def checkpoint(server):
    """The host knows an image encoder at full size only, so weights would be 1.3 GB."""
    with patch.object(untrained, "random_tensors", lambda shapes, *_: shapes):
        encoder = untrained.image_encoder_weights(0)
    shapes = {f"conditioner.embedders.0.open_clip.model.visual.{name}": shape for name, shape in encoder.items()}
    vae = {f"first_stage_model.{name}": value for name, value in untrained.vae_weights(untrained.VAE_SEED).items()}
    path = server.base / "models" / "checkpoints" / CHECKPOINT
    write_hollow(path, shapes | unet_shapes(untrained.SVD_REAL_WIDTH), vae)
    return path.name


@pytest.fixture
def canvas(opened_editor, browser, server):
    """An editor of its own with nothing on its canvas: a node that still follows the mouse would cover those of other tests."""
    editor = Editor(browser, server, opened_editor.renderer)
    editor.load_template({"nodes": [], "links": [], "version": 0.4}, "empty")
    yield editor
    editor.page.close()
    assert editor.problems == []


def add_by_search(editor):
    page = editor.page
    dialog = page.get_by_role("dialog")
    field = dialog.get_by_role("combobox").or_(dialog.locator("input")).first
    for _ in range(3):  # the canvas ignores a double click whose clicks a busy machine separates too far
        page.mouse.dblclick(700, 400)
        with contextlib.suppress(TimeoutError):
            field.wait_for(timeout=10_000)
            break
    field.fill("image to video svd")
    page.get_by_test_id("result-item").filter(has_text=NAME).first.click()
    page.wait_for_function("() => app.graph._nodes.length === 1")
    dialog.wait_for(state="hidden")
    page.mouse.move(690, 400)
    page.mouse.click(700, 400)  # the node follows the mouse until it is placed
    page.wait_for_function("() => !app.graph._nodes[0].flags.ghost")


def test_the_server_lists_it_as_the_packs(server):
    [(entry_id, entry)] = [item for item in server.get("/api/global_subgraphs").items() if item[1]["name"] == NAME]
    assert entry["source"] == "custom_node" and entry["info"]["node_pack"] == "custom_nodes.temporal-unet"
    assert json.loads(server.get(f"/api/global_subgraphs/{entry_id}")["data"]) == json.loads(PATH.read_text(encoding="utf-8"))


def test_added_by_hand_it_runs_to_a_video(canvas, server, checkpoint):
    add_by_search(canvas)
    page = canvas.page
    assert page.evaluate(WIDGETS) == {
        "ckpt_name": "svd.safetensors", "width": 1024, "height": 576, "video_frames": 14, "motion_bucket_id": 127, "fps": 6,
        "seed": 0,
    }
    assert page.evaluate("() => app.graph._nodes[0].outputs.map(({name, type}) => [name, type])") == [
        ["frames", "IMAGE"], ["video", "VIDEO"],
    ]
    page.evaluate(CONNECT)
    chosen = {
        "ckpt_name": checkpoint, "width": SIZE, "height": SIZE, "video_frames": FRAMES, "motion_bucket_id": 90, "fps": FPS,
        "seed": len(server.get("/history")),
    }
    page.evaluate(SET, chosen)
    sent = {node["class_type"]: node["inputs"] for node in canvas.prompt().values()}
    assert chosen == {
        "ckpt_name": sent["TemporalUNetCheckpointLoader"]["ckpt_name"],
        **{name: value for name, value in sent["TemporalUNetSVDConditioning"].items() if name in chosen and name != "seed"},
        "seed": sent["TemporalUNetSVDSampler"]["seed"],
    }
    entry = server.wait(canvas.run({}), timeout=200)
    assert failure(entry) is None
    [saved] = [item for output in entry["outputs"].values() for item in output.get("images", [])]
    with av.open(server.base / saved["type"] / saved["subfolder"] / saved["filename"]) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert video.streams.video[0].average_rate == FPS
    assert [frame.shape for frame in frames] == [(SIZE, SIZE, 3)] * FRAMES
    assert max(frame.std() for frame in frames) > 1  # something is in it
