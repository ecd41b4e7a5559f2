"""The example workflows in the editor: listed, opened, the same as their API twins, readable, explained, and run."""

import io
import json
import re
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

import av
import pytest
from PIL import Image

from support.editor import Editor
from tools.server import failure

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
PACK = "temporal-unet"
MINIATURE = "6 Try it without a download"
# For what is the same in both renderers: dialogs, texts of notes, help.
ONE_RENDERER = pytest.mark.parametrize("opened_editor", ["classic"], indirect=True)
# Where links start and end, from left to right; and the groups: [left, top, right, bottom] in pixels of the page.
LINKS = """() => [...app.graph.links.values()].map(({origin_id, target_id}) =>
    [origin_id, target_id].map((id) => app.graph.getNodeById(id)).map(({pos, title}) => ({x: pos[0], y: pos[1], title})))"""
GROUPS = """() => app.graph._groups.map(({pos: [x, y], size: [width, height]}) => {
    const {scale, offset} = app.canvas.ds
    const {left, top} = app.canvas.canvas.getBoundingClientRect()
    const corner = [(x + offset[0]) * scale + left, (y + offset[1]) * scale + top]
    return [...corner, corner[0] + width * scale, corner[1] + height * scale]
})"""


@pytest.fixture(scope="session")
def our_nodes(server):
    """Definitions of the pack's nodes, as the server gives them: id -> definition."""
    found = {name: node for name, node in server.get("/object_info").items() if node["python_module"] == f"custom_nodes.{PACK}"}
    assert len(found) >= 4
    return found


def api_twin(name):
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def template(file):
    return f"/api/workflow_templates/{PACK}/{quote(file)}"


def open_template(editor, name):
    editor.load_template(editor.server.get(template(f"{name}.json")), name)


def open_help(editor, language="en"):
    """The sampler's, from its toolbox."""
    page = FOLDER.parent / "web" / "docs" / "TemporalUNetSVDSampler" / f"{language}.md"
    heading = re.findall("^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)[-1]
    open_template(editor, MINIATURE)
    editor.page.evaluate("() => app.canvas.selectItems(app.graph._nodes.filter((node) => node.type === 'TemporalUNetSVDSampler'))")
    editor.page.get_by_test_id("info-button").click()
    help = editor.page.locator(".node-help-content")
    help.get_by_role("heading", name=heading).wait_for()
    return help


def note_of(workflow):
    [note] = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    return note


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
        with Image.open(io.BytesIO(server.get(template(f"{name}.jpg")))) as card:
            assert card.width == card.height
            assert getattr(card, "n_frames", 1) > 1 or name[0] in "789", f"the card of {name} stands still"


@pytest.mark.slow
@ONE_RENDERER
def test_template_opens_from_the_browser_of_templates(editor):
    page = editor.page
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text(PACK, exact=True).first.click()
    card = page.get_by_test_id(f"template-workflow-{MINIATURE}")
    card.scroll_into_view_if_needed()  # its image is fetched when it comes into view
    picture = card.locator("img").first
    picture.wait_for()
    shown = picture.evaluate("async (img) => { await img.decode(); return [img.naturalWidth, img.naturalHeight] }")
    assert shown == list(Image.open(FOLDER / f"{MINIATURE}.jpg").size)  # not the host's stand-in
    seen = set()
    while len(seen) < 2:  # it moves
        seen.add(picture.screenshot())
    card.click()
    page.wait_for_function(f"() => app.extensionManager.workflow.activeWorkflow.filename.startsWith('{MINIATURE}')")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert len(editor.prompt()) == len(api_twin(MINIATURE))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_template_sends_what_its_api_twin_says_and_is_read_from_left_to_right(editor, server, name):
    definitions, twin = server.get("/object_info"), api_twin(name)
    if unknown := {node["class_type"] for node in twin.values()} - definitions.keys():
        pytest.skip(f"this ComfyUI has no {', '.join(unknown)}")
    open_template(editor, name)
    sent = editor.prompt()
    assert {id: node["class_type"] for id, node in sent.items()} == {id: node["class_type"] for id, node in twin.items()}
    for id, node in twin.items():
        inputs = definitions[node["class_type"]]["input"]
        inputs = {**inputs["required"], **inputs.get("optional", {})}
        sent[id]["inputs"].pop("video-preview", None)  # the editor's player, which the server ignores
        added = {input: default(inputs[input]) for input in sent[id]["inputs"].keys() - node["inputs"].keys()}
        assert sent[id]["inputs"] == {**node["inputs"], **added}
    assert widget_values(editor.workflow()) == widget_values(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    check_layout(editor, len(twin) + 1)  # and the note


def check_layout(editor, count):
    """So many nodes lie in view, in a group each, none over another, and no link runs from right to left or upward."""
    boxes, groups = editor.node_boxes(), editor.page.evaluate(GROUPS)
    assert len(boxes) == count
    for (a, (left, top, right, bottom)), (b, other) in combinations(boxes.items(), 2):
        assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, f"nodes {a} and {b} overlap"
    width, height = editor.page.viewport_size.values()
    for node, (left, top, right, bottom) in boxes.items():
        assert 0 <= left and 0 <= top and right <= width and bottom <= height, f"node {node} is out of view"
        assert any(x <= left and y <= top and right <= x_end and bottom <= y_end for x, y, x_end, y_end in groups), (
            f"node {node} sticks out of its group")
    for start, end in editor.page.evaluate(LINKS):
        assert (start["x"], start["y"]) < (end["x"], end["y"]), f"the link from {start['title']} to {end['title']} runs backward"


def test_only_the_packs_own_example_files_are_fetched_for_a_workflow(editor, server):
    assert sorted(path.name for path in (FOLDER.parent / "web" / "examples").iterdir()) == sorted(re.findall(
        r"'(temporal_unet_\w+\.\w+)'", (FOLDER.parent / "web" / "js" / "example_inputs.js").read_text(encoding="utf-8")))
    open_template(editor, MINIATURE)
    before = sorted((server.base / "input").iterdir())
    workflow = json.loads((FOLDER / f"{MINIATURE}.json").read_text(encoding="utf-8"))
    [photo] = [node for node in workflow["nodes"] if node["type"] == "LoadImage"]
    asked = []
    editor.page.on("request", lambda request: asked.append(request.url))
    for name in (f"{server.url}/api/settings", "../js/notes.js"):
        photo["properties"]["temporal_unet_example"] = name
        editor.load_template(workflow, "hostile")
    assert not [url for url in asked if url.endswith(("/settings", "/notes.js", "/upload/image"))]
    assert sorted((server.base / "input").iterdir()) == before


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
@ONE_RENDERER
def test_in_another_language_notes_are_translated_unless_changed_and_help_is_the_page_of_that_language(editor, browser, server):
    try:
        french = Editor(browser, server, editor.renderer, **{"Comfy.Locale": "fr"})
    finally:
        server.post("/api/settings", {"Comfy.Locale": "en"})
    help = open_help(french, "fr")
    assert help.locator("img").first.evaluate("async (img) => { await img.decode(); return img.naturalWidth }") > 100
    assert french.problems == []
    texts = json.loads((FOLDER.parent / "locales" / "fr" / "main.json").read_text(encoding="utf-8"))["temporalUnet"]["notes"]
    assert note_of(french.workflow())["widgets_values"] == [texts["miniature"]]
    changed = json.loads((FOLDER / f"{MINIATURE}.json").read_text(encoding="utf-8"))
    note_of(changed)["widgets_values"] = ["Mine."]
    french.load_template(changed, "changed")
    assert note_of(french.workflow())["widgets_values"] == ["Mine."]
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
    open_template(editor, MINIATURE)
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
