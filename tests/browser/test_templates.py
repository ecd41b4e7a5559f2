"""The example workflows in the editor: listed, opened, the same as their API twins, readable, explained, and run."""

import json
import re
from itertools import combinations
from pathlib import Path

import av
import pytest
from PIL import Image

from support.editor import Editor
from support.stand_ins import write_video
from tools.server import failure

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
PACK = "temporal-unet"


@pytest.fixture(scope="session")
def our_nodes(server):
    """Definitions of the pack's nodes, as the server gives them: id -> definition."""
    found = {name: node for name, node in server.get("/object_info").items() if node["python_module"] == f"custom_nodes.{PACK}"}
    assert len(found) >= 4
    return found


@pytest.fixture(scope="module", autouse=True)
def control_video(server):
    """The one that templates name; the editor would report it missing."""
    write_video(server.base / "input" / "example.png", server.base / "input" / "control.mp4")


def api_twin(name):
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def open_template(editor, name):
    editor.load_template(editor.server.get(f"/api/workflow_templates/{PACK}/{name}.json"), name)


def open_help(editor):
    """The sampler's, from its toolbox."""
    open_template(editor, "miniature_image_to_video")
    page = editor.page
    page.evaluate("() => app.canvas.selectItems(app.graph._nodes.filter((node) => node.type === 'TemporalUNetSVDSampler'))")
    page.get_by_test_id("info-button").click()
    help = page.locator(".node-help-content")
    help.get_by_role("heading", name="When it fails").wait_for()
    return help


def widget_values(workflow):
    return {node["id"]: node.get("widgets_values") or [] for node in workflow["nodes"]}


def default(definition):
    """What the host takes where an input is left out: [type or list of choices, options] -> value."""
    kind, options = definition[0], definition[1] if len(definition) > 1 else {}
    choices = kind if isinstance(kind, list) else options.get("options", [None])
    return options.get("default", choices[0])


def test_every_workflow_is_listed_as_a_template_with_an_image(server):
    assert NAMES == sorted(path.stem for path in (FOLDER / "api").glob("*.json"))
    assert sorted(server.get("/api/workflow_templates")[PACK]) == NAMES
    for name in NAMES:
        assert server.get(f"/api/workflow_templates/{PACK}/{name}.jpg").startswith(b"\xff\xd8")


@pytest.mark.slow
def test_template_opens_from_the_browser_of_templates(editor):
    page = editor.page
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text(PACK, exact=True).first.click()
    card = page.get_by_test_id("template-workflow-miniature_image_to_video")
    picture = card.locator("img").first
    picture.wait_for()
    shown = picture.evaluate("async (img) => { await img.decode(); return [img.naturalWidth, img.naturalHeight] }")
    assert shown == list(Image.open(FOLDER / "miniature_image_to_video.jpg").size)  # not the host's stand-in
    card.click()
    page.wait_for_function("() => app.extensionManager.workflow.activeWorkflow.filename.startsWith('miniature_image_to_video')")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert len(editor.prompt()) == len(api_twin("miniature_image_to_video"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_template_sends_what_its_api_twin_says(editor, server, name):
    open_template(editor, name)
    sent, twin = editor.prompt(), api_twin(name)
    assert {id: node["class_type"] for id, node in sent.items()} == {id: node["class_type"] for id, node in twin.items()}
    for id, node in twin.items():
        definitions = server.get(f"/object_info/{node['class_type']}")[node["class_type"]]["input"]
        definitions = {**definitions["required"], **definitions.get("optional", {})}
        sent[id]["inputs"].pop("video-preview", None)  # the editor's player, which the server ignores
        added = {input: default(definitions[input]) for input in sent[id]["inputs"].keys() - node["inputs"].keys()}
        assert sent[id]["inputs"] == {**node["inputs"], **added}


@pytest.mark.parametrize("name", NAMES)
def test_nodes_of_a_template_do_not_overlap_and_lie_in_view(editor, name):
    open_template(editor, name)
    boxes = editor.node_boxes()
    assert len(boxes) == len(api_twin(name)) + 1  # and the note
    for (a, (left, top, right, bottom)), (b, other) in combinations(boxes.items(), 2):
        assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, f"nodes {a} and {b} overlap"
    width, height = editor.page.viewport_size.values()
    assert all(0 <= left and 0 <= top and right <= width and bottom <= height for left, top, right, bottom in boxes.values())


@pytest.mark.slow
def test_saving_an_opened_template_loses_no_widget_value(editor):
    for name in NAMES:
        open_template(editor, name)
        template = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert widget_values(editor.workflow()) == widget_values(template)


def test_nodes_are_found_by_searching_for_the_pack(editor, our_nodes):
    page = editor.page
    page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.get_by_role("dialog").get_by_role("combobox").or_(page.get_by_role("dialog").locator("input")).first.fill("Temporal UNet")
    for node in our_nodes.values():
        page.get_by_test_id("result-item").filter(has_text=node["display_name"]).first.wait_for(timeout=10_000)
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")


def test_help_of_a_node_opens_from_its_toolbox(editor):
    open_help(editor)
    editor.page.evaluate("() => app.canvas.deselectAll()")


@pytest.mark.slow
def test_help_in_another_language_is_the_english_page_with_its_images(editor, browser, server):
    try:
        french = Editor(browser, server, editor.renderer, **{"Comfy.Locale": "fr"})
    finally:
        server.post("/api/settings", {"Comfy.Locale": "en"})
    help = open_help(french)
    assert help.locator("img").first.evaluate("async (img) => { await img.decode(); return img.naturalWidth }") > 100
    assert [problem for problem in french.problems if "/TemporalUNetSVDSampler/fr.md" not in problem] == []  # first
    french.page.close()


def test_help_of_every_node_is_served_and_explains_every_input(server, our_nodes):
    for name, node in our_nodes.items():
        text = server.get(f"/extensions/{PACK}/docs/{name}/en.md").decode()
        assert text.startswith(f"# {node['display_name']}\n")
        for input in [*node["input"].get("required", {}), *node["input"].get("optional", {})]:
            assert f"**{input}**" in text, f"the help of {name} says nothing about {input}"
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):  # the editor looks for them next to the nodes' folders
            assert server.get(f"/extensions/{PACK}/docs/{picture}"), f"the help of {name} shows {picture}, which is not served"


@pytest.mark.slow
def test_svd_template_makes_a_video_when_run_from_the_editor(editor, server):
    open_template(editor, "miniature_image_to_video")
    small = {
        "TemporalUNetSVDConditioning": {"width": 64, "height": 64, "video_frames": 3},
        "TemporalUNetSVDSampler": {"steps": 2, "seed": len(server.get("/history"))},  # another: a repeated run comes from the cache
    }
    entry = server.wait(editor.run(small), timeout=100)
    assert failure(entry) is None
    [saved] = [item for output in entry["outputs"].values() for item in output.get("images", [])]
    with av.open(server.base / saved["type"] / saved["subfolder"] / saved["filename"]) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert [frame.shape for frame in frames] == [(64, 64, 3)] * 3
    assert max(frame.std() for frame in frames) > 1  # something is in it
