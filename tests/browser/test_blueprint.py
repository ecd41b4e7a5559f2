"""The blueprint "Image to Video (SVD)": listed by the server, added by hand on an empty canvas, and the same as
the template that test_first_video.py runs to a video."""

import contextlib
import json
from pathlib import Path

import pytest
from playwright.sync_api import TimeoutError

from support.editor import Editor

pytestmark = pytest.mark.slow

NAME = "Image to Video (SVD)"
PATH = Path(__file__).resolve().parents[2] / "subgraphs" / f"{NAME}.json"
TWIN = Path(__file__).resolve().parents[2] / "example_workflows" / "api" / "1 Image to Video.json"
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


def by_type(prompt):
    """class_type -> its inputs, links by the class_type that they come from; the sockets of these nodes take one kind each."""
    kinds = {id: node["class_type"] for id, node in prompt.items()}
    return {
        node["class_type"]: {
            name: [kinds[value[0]], value[1]] if isinstance(value, list) else value for name, value in node["inputs"].items()
        } for node in prompt.values()
    }


def test_added_by_hand_it_sends_what_the_template_sends_and_each_of_its_inputs_counts(canvas):
    add_by_search(canvas)
    page = canvas.page
    assert page.evaluate("() => app.graph._nodes[0].outputs.map(({name, type}) => [name, type])") == [
        ["frames", "IMAGE"], ["video", "VIDEO"],
    ]
    page.evaluate(CONNECT)
    twin = by_type(json.loads(TWIN.read_text(encoding="utf-8")))
    sent = by_type(canvas.prompt())
    assert sent.keys() == twin.keys()
    for kind in sent.keys() - {"SaveVideo"}:
        assert twin[kind].items() <= sent[kind].items(), kind
    chosen = {
        "ckpt_name": "other.safetensors", "width": 512, "height": 256, "video_frames": 25, "motion_bucket_id": 90, "fps": 7,
        "seed": 5,
    }
    page.evaluate(SET, chosen)
    sent = by_type(canvas.prompt())
    clip = sent["TemporalUNetSVDConditioning"]
    assert chosen == {
        "ckpt_name": sent["TemporalUNetCheckpointLoader"]["ckpt_name"], "seed": sent["TemporalUNetSVDSampler"]["seed"],
        **{name: clip[name] for name in ("width", "height", "video_frames", "motion_bucket_id", "fps")},
    }
    assert sent["CreateVideo"]["fps"] == ["TemporalUNetSVDConditioning", 3]
