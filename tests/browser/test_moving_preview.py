"""The moving preview of the sampler: what is on it, how it plays, who sees it, and when it goes. Real runs of the miniature."""

import base64
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from support.editor import Editor
from support.prompts import WORKFLOWS_0_1
from tools.server import failure

pytestmark = pytest.mark.slow

EXAMPLE = WORKFLOWS_0_1 / "api" / "miniature_image_to_video.json"
SAMPLER = "TemporalUNetSVDSampler"
FRAMES, FPS, STEPS = 8, 5, 6
STEPS_TO_SEE = 20  # a run that is still on when a slow page has drawn its preview
TIMEOUT = 120  # seconds, on a busy machine
ONE_RENDERER = pytest.mark.parametrize("opened_editor", ["nodes2"], indirect=True)  # what no renderer has a part in
seeds = itertools.count(1)

LISTEN = """() => {
    window.heard = {}
    for (const name of ['temporal_unet.preview', 'b_preview', 'b_preview_with_metadata', 'execution_success']) {
        heard[name] = []
        app.api.addEventListener(name, ({detail}) => heard[name].push(detail))
    }
}"""
# The preview's three elements: image, bar, text; null in a graph without the sampler.
PARTS = """window.parts = () => {
    const sampler = app.canvas.graph._nodes.find((node) => node.type === 'TemporalUNetSVDSampler')
    const root = sampler?.widgets.find((widget) => widget.name.startsWith('moving_preview')).element
    return root && {root, picture: root.children[0], bar: root.children[1], words: root.children[2]}
}"""
WATCH = """() => {
    Object.assign(window, {said: [], marks: []})
    const {bar, words} = parts()
    new MutationObserver(() => {
        if (words.textContent !== said.at(-1)) said.push(words.textContent)
    }).observe(words, {childList: true})
    new MutationObserver(() => {
        for (const mark of [...bar.children].slice(0, -1)) marks.push([mark.style.left, mark.style.width].map(parseFloat))
    }).observe(bar, {childList: true})
}"""
# [time in seconds, frame that the end mark on the bar stands at] of each image that the page draws.
PLAY = """([seconds, frames]) => new Promise((done) => {
    const {bar} = parts(), head = bar.lastElementChild
    const seen = [], start = performance.now()
    const look = () => {
        const now = (performance.now() - start) / 1000
        const place = bar.getBoundingClientRect(), mark = head.getBoundingClientRect()
        seen.push([now, Math.round((mark.left - place.left) / (place.width - mark.width) * (frames - 1))])
        now < seconds ? requestAnimationFrame(look) : done(seen)
    }
    look()
})"""
# The sampler's height in what the host keeps: its steps of undo and what a file, a tab and a reload restore contain it.
KEPT_HEIGHT = """() => {
    const {changeTracker} = app.extensionManager.workflow.activeWorkflow
    changeTracker.captureCanvasState() // as after a click
    return changeTracker.activeState.nodes.find(({type}) => type === 'TemporalUNetSVDSampler').size[1]
}"""
# What is on the page in the middle of a run, seen at one moment: the run goes on while a test asks.
WHILE_IT_RUNS = """() => {
    const {root, picture, words} = parts(), node = app.graph.getNodeById(5)
    const late = /^step ([3-9]|\\d\\d)/.test(words.textContent) && heard.b_preview.length > 1
    return late && picture.getBoundingClientRect().height > 90 && {
        picture: picture.checkVisibility(),
        'close button': root.querySelector('button').checkVisibility(),
        'images of the host': document.querySelectorAll('[data-node-id="5"] img').length + (node.imgs?.length ?? 0),
    }
}"""
# By id: a click brings a node to the front, which changes their order.
WHERE = """() => {
    const nodes = [...app.graph._nodes].sort((a, b) => a.id - b.id)
    return [...app.canvas.ds.offset, ...nodes.flatMap((node) => [...node.pos])]
}"""


def clip(frames=FRAMES, steps=STEPS, decode=True, **sampler) -> dict:
    """The example on the miniature; without `decode` the latent is saved, so that no video comes after the sampler."""
    prompt = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    prompt["1"]["inputs"]["image"] = "first_frame.png"
    prompt["2"]["inputs"]["unet_name"] = "miniature_svd.safetensors"
    prompt["3"]["inputs"]["vae_name"] = "miniature_vae.safetensors"
    prompt["4"]["inputs"].update(width=128, height=64, video_frames=frames, fps=FPS)
    prompt["5"]["inputs"].update(steps=steps, seed=next(seeds), max_cfg=1.0, **sampler)
    prompt["6"]["class_type"] = "TemporalUNetDecodeVideo"
    if not decode:
        prompt["6"] = {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": "preview"}}
        del prompt["7"], prompt["8"]
    return prompt


class Preview:
    """The sampler's preview in an editor, as a user sees it."""

    def __init__(self, editor, **kwargs):
        self.editor, self.page = editor, editor.page
        editor.load_api(clip(**kwargs), "preview")
        editor.look_at(SAMPLER)
        for script in (LISTEN, PARTS, WATCH):
            self.page.evaluate(script)

    def run(self):
        """A run to its end."""
        self.finish(self.editor.run({}))

    def finish(self, prompt_id):
        assert failure(self.editor.server.wait(prompt_id, TIMEOUT)) is None
        ended = "(id) => heard.execution_success.some((success) => success.prompt_id === id)"  # after all other messages of it
        self.page.wait_for_function(ended, arg=prompt_id)
        self.editor.drawn()

    def wait_for_words(self, pattern):
        said = "(pattern) => RegExp(pattern).test(parts()?.words.textContent)"
        self.page.wait_for_function(said, arg=pattern, timeout=TIMEOUT * 1000)

    def heard(self, event):
        return self.page.evaluate("(event) => heard[event].map((data) => data instanceof Blob ? 'blob' : data)", event)

    @property
    def words(self):
        return self.page.evaluate("() => parts().words.textContent")

    @property
    def said(self):
        """All texts since it was opened."""
        return self.page.evaluate("() => said")

    @property
    def is_visible(self):
        return self.page.evaluate("() => { const {picture} = parts(); return picture.isConnected && picture.checkVisibility() }")

    @property
    def picture(self) -> np.ndarray:
        url = self.page.evaluate("() => parts().picture.toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(float)

    def place(self, share):
        """A point on the image, `share` of its width from its left edge."""
        x, y, width, height = self.page.evaluate("""() => {
            const {x, y, width, height} = parts().picture.getBoundingClientRect()
            return [x, y, width, height]
        }""")
        return x + share * width, y + height / 2

    @property
    def close_button(self):
        return self.page.locator('[data-testid="temporal-unet-preview"] button').last

    def play(self, seconds):
        return self.page.evaluate(PLAY, [seconds, FRAMES])

    @property
    def node_height(self):
        """Of the sampler as it is drawn."""
        _, top, _, bottom = self.editor.node_boxes()["5"]
        return bottom - top

    @property
    def kept_height(self):
        return self.page.evaluate(KEPT_HEIGHT)

    def close(self):
        self.page.mouse.dblclick(*self.place(0.5))
        assert not self.is_visible
        self.editor.drawn()


def cells(sheet) -> list[np.ndarray]:
    """The frames on a sheet of the server, cut up without the page."""
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["image"].split(",")[1])))).astype(float)
    places = [divmod(index, sheet["columns"]) for index in range(len(sheet["shown"]))]
    width, height = sheet["width"], sheet["height"]
    return [picture[row * height:(row + 1) * height, column * width:(column + 1) * width] for row, column in places]


@pytest.fixture
def played(editor):
    """After a run that ends with the sampler's latent: the last preview stays."""
    preview = Preview(editor, decode=False)
    preview.run()
    return preview


def test_before_the_first_run_there_is_nothing_to_see_or_to_save(editor):
    assert not Preview(editor).is_visible
    [saved] = [node["widgets_values"] for node in editor.workflow()["nodes"] if node["type"] == SAMPLER]
    sent = editor.prompt()["5"]["inputs"]
    assert not [name for name in sent if name.startswith("moving_preview")]
    assert len(saved) == len([value for value in sent.values() if not isinstance(value, list)]) + 1  # and the control of the seed


def test_it_plays_all_frames_at_the_clips_pace_and_stays_after_the_sampler(played):
    assert "step 1 of 6" in played.said and played.said[-1] == played.words == "done: 8 frames, 6 steps"
    assert played.is_visible
    marks = played.play(2.5)
    turns = [after for before, after in itertools.pairwise(marks) if before[1] != after[1]]
    forward = [(after[1] - before[1]) % FRAMES for before, after in itertools.pairwise(turns)]
    assert len({frame for _, frame in marks}) > FRAMES / 2 and forward.count(1) > len(forward) / 2  # a busy machine may miss some
    assert sum(forward) / (turns[-1][0] - turns[0][0]) == pytest.approx(FPS, rel=0.1)


def test_it_stands_still_while_it_is_not_visible(played):
    page, collapse = played.page, "() => app.graph.getNodeById(5).collapse()"
    place = "() => parts().bar.lastElementChild.style.left"
    page.evaluate(collapse)
    page.wait_for_function("() => !parts().picture.checkVisibility()")
    played.editor.drawn()
    before = page.evaluate(place)
    page.wait_for_timeout(3 / FPS * 1000)
    assert page.evaluate(place) == before
    page.evaluate(collapse)  # back again
    page.wait_for_function("() => parts().picture.checkVisibility()")
    assert len({frame for _, frame in played.play(2)}) >= 4


def test_arrow_keys_choose_the_frame_and_losing_focus_plays_on(played):
    page = played.page
    before = page.evaluate(WHERE)
    page.evaluate("() => parts().picture.focus()")
    chosen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        assert played.words.endswith(f" of {FRAMES}")
        chosen.append(int(played.words.split()[1]))
    assert [(after - before) % FRAMES for before, after in itertools.pairwise(chosen)] == [1, FRAMES - 1, FRAMES - 1]
    page.evaluate("() => parts().picture.blur()")
    assert played.words.startswith("done")
    assert page.evaluate(WHERE) == before  # neither the node nor the canvas was moved


def test_dragging_over_the_image_chooses_the_frame_also_beyond_its_edges_and_letting_go_plays_on(played):
    page, mouse = played.page, played.page.mouse
    before = page.evaluate(WHERE)
    [*_, expected] = [cells(sheet) for sheet in played.heard("temporal_unet.preview") if "image" in sheet]
    differences = np.zeros((FRAMES, FRAMES))
    mouse.move(*played.place(0.5 / FRAMES))
    mouse.down()
    for frame in range(FRAMES):
        mouse.move(*played.place((frame + 0.5) / FRAMES))
        played.editor.drawn()
        assert played.words == f"frame {frame + 1} of {FRAMES}"
        differences[frame] = [np.abs(played.picture - cell).mean() for cell in expected]
    assert differences.diagonal().max() < 2  # of 255: two readers of JPEG
    assert np.all(differences.argmin(1) == np.arange(FRAMES))
    x, y = played.place(0.5)
    mouse.move(x, y - 400)  # off the image, with the button down
    assert played.words == f"frame {FRAMES // 2 + 1} of {FRAMES}"
    mouse.move(*played.place(-0.3))
    assert played.words == f"frame 1 of {FRAMES}"
    mouse.up()
    assert played.words.startswith("done")
    assert len({frame for _, frame in played.play(2)}) >= 4
    assert page.evaluate(WHERE) == before  # neither the node nor the canvas was dragged


def test_a_step_without_an_image_changes_the_text_and_keeps_the_image(played):
    played.page.evaluate("""() => {
        const sheet = heard['temporal_unet.preview'].findLast((event) => event.image)
        const {node_id, fps, frames} = sheet
        app.api.dispatchCustomEvent('temporal_unet.preview', {...sheet, prompt_id: 'next', step: 3, steps: 9})
        const step = {node_id, fps, frames, prompt_id: 'next', step: 4, steps: 9}
        app.api.dispatchCustomEvent('temporal_unet.preview', step)
        window.stepOnLanes = () =>
            app.api.dispatchCustomEvent('temporal_unet.preview', {...step, window: [2, 5], at_work: [3, 4]})
    }""")
    assert played.words == "step 4 of 9"
    played.page.evaluate("() => stepOnLanes()")
    assert played.words == "step 4 of 9, 3 of 4 devices at work"
    assert len({frame for _, frame in played.play(3)}) > FRAMES / 2  # on a busy machine the image may come late
    assert played.picture.std() > 1  # there is something on it


def test_after_the_run_a_double_click_or_escape_closes_it(played):
    page, before = played.page, played.page.evaluate(WHERE)
    again = """(prompt_id) => {
        const sheet = heard['temporal_unet.preview'].findLast((event) => event.image)
        app.api.dispatchCustomEvent('temporal_unet.preview', {...sheet, prompt_id})
    }"""
    end = "(prompt_id) => app.api.dispatchCustomEvent('execution_interrupted', {prompt_id})"
    page.mouse.dblclick(*played.place(0.5))
    assert not played.is_visible
    played.editor.drawn()
    height = played.node_height
    page.evaluate(again, "next")  # a run begins, which brings it back
    assert played.is_visible
    page.mouse.dblclick(*played.place(0.5))
    assert played.is_visible  # while it runs it stays
    page.evaluate(end, "next")
    assert played.words.startswith("stopped")
    page.evaluate("() => parts().picture.focus()")
    page.keyboard.press("Escape")
    assert not played.is_visible
    played.editor.drawn()
    assert played.node_height == pytest.approx(height, abs=5)
    assert page.evaluate(WHERE) == before


def test_the_room_that_it_takes_is_neither_saved_nor_a_step_of_undo(editor):
    editor.page.evaluate("() => app.graph.clear()")  # else Nodes 2.0 does not measure a node as high as the last of its id
    editor.drawn()
    preview = Preview(editor, decode=False)
    editor.page.wait_for_function("""() => {  // Nodes 2.0 measures a node some time after it was made
        const node = app.graph.getNodeById(5), drawn = document.querySelector('[data-node-id="5"]')
        return !drawn || Math.abs(drawn.offsetHeight - LiteGraph.NODE_TITLE_HEIGHT - node.size[1]) < 2
    }""")
    kept, height = preview.kept_height, preview.node_height
    preview.run()
    assert preview.node_height > height + 20
    assert preview.kept_height == kept
    preview.close()
    assert preview.kept_height == kept
    assert preview.node_height == pytest.approx(height, abs=1)


def test_a_height_that_the_user_gives_the_node_meanwhile_is_kept(played):
    page, (_, _, right, bottom) = played.page, played.editor.node_boxes()["5"]
    before, height = played.kept_height, played.node_height
    page.mouse.move(right - 3, bottom - 3)
    page.mouse.down()
    page.mouse.move(right - 3, bottom + 57, steps=4)
    page.mouse.up()
    played.editor.drawn()
    assert played.node_height == pytest.approx(height + 60, abs=5)
    kept = played.kept_height
    assert kept > before + 60
    played.page.evaluate("""() => {
        const sheet = heard['temporal_unet.preview'].findLast((event) => event.image)
        app.api.dispatchCustomEvent('temporal_unet.preview', sheet)
    }""")
    played.close()
    assert played.kept_height == kept
    assert played.node_height == pytest.approx(height + 60, abs=5)


def test_the_hosts_own_preview_is_not_shown_next_to_ours_which_stays_with_the_decoded_frames_until_it_is_closed(editor):
    preview = Preview(editor, steps=STEPS_TO_SEE)
    height, kept = preview.node_height, preview.kept_height
    prompt_id = editor.run({}, preview_method="latent2rgb")
    seen = editor.page.wait_for_function(WHILE_IT_RUNS, timeout=TIMEOUT * 1000).json_value()
    assert seen == {"picture": True, "close button": False, "images of the host": 0}
    preview.finish(prompt_id)
    assert len(preview.heard("b_preview")) >= STEPS_TO_SEE  # it did come
    assert preview.heard("b_preview_with_metadata") == []
    assert preview.is_visible and preview.words == f"done: 8 frames, {STEPS_TO_SEE} steps"
    editor.page.wait_for_function("() => parts().picture.width === 128")  # pixels of a frame, no longer of its latent
    *_, decoded = preview.heard("temporal_unet.preview")
    assert decoded["decoded"] and (decoded["fps"], decoded["node_id"]) == (FPS, "5")
    assert len({frame for _, frame in preview.play(2)}) >= 4
    assert preview.kept_height == kept
    again = dict(editor.prompt()["5"]["inputs"])
    preview.close_button.click()
    assert not preview.is_visible
    editor.drawn()
    assert preview.node_height == pytest.approx(height, abs=5)
    editor.set_widget("TemporalUNetDecodeVideo", "overlap", 7)  # decodes again, from a clip that the sampler made before
    prompt_id = editor.run({})
    preview.finish(prompt_id)
    assert editor.prompt()["5"]["inputs"] == again
    assert preview.is_visible and preview.words == "done: 8 frames"


@ONE_RENDERER
def test_the_window_being_worked_on_is_marked_in_a_long_clip(editor):
    preview = Preview(editor, frames=20, steps=12, window_frames=8, window_overlap=2)
    preview.run()
    seen = [event for event in preview.heard("temporal_unet.preview") if "window" in event]  # quick windows are not all reported
    windows = {(first, last) for first, last in (event["window"] for event in seen)}
    assert all(last - first == 7 and 0 <= first <= 12 for first, last in windows) and len(windows) >= 2
    phrases = {f"step {event['step']} of 12, frames {event['window'][0] + 1} to {event['window'][1] + 1} of 20" for event in seen}
    assert phrases <= set(preview.said)
    marks = {tuple(mark) for mark in editor.page.evaluate("() => marks")}
    assert sorted(marks) == [(pytest.approx(first / 20 * 100), pytest.approx(40)) for first, _ in sorted(windows)]


def test_in_a_subgraph_it_is_shown_inside_and_the_hosts_outside(editor):
    preview = Preview(editor, steps=12, decode=False)
    outer = editor.page.evaluate("() => String(app.graph.convertToSubgraph(new Set([app.graph.getNodeById(5)])).node.id)")
    prompt_id = editor.run({}, preview_method="latent2rgb")
    editor.page.evaluate("(id) => app.canvas.openSubgraph(app.graph.getNodeById(id).subgraph, app.graph.getNodeById(id))", outer)
    editor.look_at(SAMPLER)
    preview.wait_for_words("step|done")
    assert preview.is_visible
    preview.finish(prompt_id)
    assert preview.words == "done: 8 frames, 12 steps"
    assert {event["node_id"].split(":")[0] for event in preview.heard("temporal_unet.preview")} == {outer}
    assert {event["displayNodeId"] for event in preview.heard("b_preview_with_metadata")} == {outer}
    editor.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


@ONE_RENDERER
def test_only_the_browser_and_workflow_that_queued_see_it_and_a_reload_goes_on_showing_it(editor, browser, server):
    other, queued = Preview(editor, decode=False), Preview(Editor(browser, server, editor.renderer), steps=400, decode=False)
    queued.editor.load_template(queued.editor.workflow(), "preview")  # it has an id now, as one from a file
    queued.editor.run({})
    queued.wait_for_words("step .* of 400")
    workflow = queued.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.path")
    another = Preview(queued.editor, decode=False)  # a workflow whose nodes have the same ids
    queued.page.wait_for_function("() => heard['temporal_unet.preview'].length > 2")
    assert (another.said, another.is_visible) == ([], False)
    queued.page.evaluate("""(path) => {
        const workflow = app.extensionManager.workflow.openWorkflows.find((workflow) => workflow.path === path)
        return app.loadGraphData(workflow.activeState, true, true, workflow)
    }""", workflow)
    queued.wait_for_words("step .* of 400")
    queued.page.reload()
    queued.editor.wait_until_ready()
    queued.page.evaluate(PARTS)
    queued.wait_for_words("step .* of 400")
    assert queued.is_visible
    server.interrupt()
    queued.wait_for_words("stopped at step .* of 400")
    assert (other.heard("temporal_unet.preview"), other.said, other.is_visible) == ([], [], False)
    assert queued.editor.problems == []
    queued.page.close()
