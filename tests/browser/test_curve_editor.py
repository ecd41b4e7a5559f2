"""The curve editor below the text inputs: drawn with a real mouse and keyboard, in both renderers, and seen by Python."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from support.curve_widget import APPLY, INPUTS, SAMPLER, WORKFLOW, Curve, type_text
from tools.server import failure

CASES = json.loads((Path(__file__).resolve().parents[1] / "curve_cases.json").read_text(encoding="utf-8"))
NAMES = {APPLY: "Apply ControlNet Residuals", SAMPLER: "SVD Temporal UNet Sampler"}


def press(curve, *keys):
    for key in keys:
        curve.page.keyboard.press(key)


def close_menu(page):
    """The one of the host that a right click opens."""
    page.wait_for_function("() => document.activeElement.closest('.p-contextmenu')")  # it gets no key events before
    page.keyboard.press("Escape")
    page.get_by_role("menuitem").first.wait_for(state="hidden")


@pytest.fixture(autouse=True)
def workflow(editor):
    editor.page.evaluate("""async (prompt) => {  // not editor.load_api: there are no images to wait for
        await app.loadApiJson(prompt, 'curves')
        app.graph.getNodeById(8).pos = [3000, 0] // the other node unfolds over it
    }""", WORKFLOW)


@pytest.fixture(params=[APPLY, SAMPLER], ids=["strengths", "guidance"])
def curve(request, editor):
    return Curve(editor, request.param)


@pytest.fixture
def strengths(editor):
    return Curve(editor, APPLY)


@pytest.mark.slow
@pytest.mark.parametrize("node_type, id", [(APPLY, "5"), (SAMPLER, "8")], ids=["strengths", "guidance"])
def test_a_drawn_curve_reaches_python_and_is_kept(editor, server, node_type, id):
    curve = Curve(editor, node_type)
    curve.drag((1, 1 if node_type == APPLY else 2), (0.75, 0.5))
    assert curve.text == f"0:{0 if node_type == APPLY else 1}, 0.75:0.5"
    saved = editor.workflow()
    entry = server.wait(editor.run({}), timeout=60)
    assert failure(entry) is None
    assert entry["prompt"][2][id]["inputs"][INPUTS[node_type]] == curve.text
    text = curve.text
    editor.load_template(saved, "again")
    again = Curve(editor, node_type)
    assert again.text == text and again.handles.count() == 2
    assert again.line()[-1] == pytest.approx(again.at(1, 0.5), abs=0.6)


def test_what_is_saved_and_sent_is_as_without_the_editor(editor):
    saved = {node["id"]: node["widgets_values"] for node in editor.workflow()["nodes"]}
    sent = {id: editor.prompt()[id]["inputs"] for id in ("5", "8")}
    assert saved[5] == [1.0, 0.0, 1.0, "0:0, 1:1"]
    assert saved[8].pop(1) == "randomize"  # the host's control of the seed
    assert saved[8] == [value for value in sent["8"].values() if not isinstance(value, list)]
    assert sent["5"] == WORKFLOW["5"]["inputs"]
    assert sent["8"] == {**sent["8"], **WORKFLOW["8"]["inputs"]}
    assert not [name for inputs in sent.values() for name in inputs if "editor" in name or "preview" in name]


def test_a_copied_node_has_its_own_curve(editor, strengths):
    strengths.text = "0:0.25, 1:0.75"
    strengths.page.evaluate("""() => {
        app.canvas.selectItems([app.graph.getNodeById(5)])
        app.canvas.copyToClipboard()
        app.canvas.pasteFromClipboard()
    }""")
    strengths.text = "0:1"
    values = strengths.page.evaluate(
        "(type) => app.graph._nodes.filter((node) => node.type === type).map((node) => node.serialize().widgets_values)", APPLY
    )
    assert sorted(values) == [[1.0, 0.0, 1.0, "0:0.25, 1:0.75"], [1.0, 0.0, 1.0, "0:1"]]


@pytest.mark.slow
def test_the_plotted_line_is_the_curve_that_python_evaluates(strengths):
    for case in CASES["good"]:
        if any(b - a < 1e-9 for (a, _), (b, _) in pairwise(case["points"])):
            continue  # both points lie on one pixel
        strengths.text = case["text"]
        count = len(case["values"])
        corners = strengths.line()
        for i, value in enumerate(case["values"]):
            x, y = strengths.at(i / max(count - 1, 1), value)
            (x0, y0), (x1, y1) = next((a, b) for a, b in pairwise(corners) if b[0] > a[0] and b[0] >= x - 0.1)
            assert y0 + (y1 - y0) * (x - x0) / (x1 - x0) == pytest.approx(y, abs=1), case["text"]


def test_what_is_typed_is_plotted(strengths):
    type_text(strengths, "0:1, 0.5:0.25, 1:1")
    assert strengths.handles.count() == 3
    assert strengths.line()[2] == pytest.approx(strengths.at(0.5, 0.25), abs=0.6)


def test_points_are_added_and_deleted_by_mouse(strengths):
    page = strengths.page
    page.mouse.click(*strengths.at(0.5, 0.5))  # on the line
    assert strengths.text == "0:0, 0.5:0.5, 1:1"
    page.mouse.dblclick(*strengths.at(0.25, 1))  # next to it
    assert strengths.text == "0:0, 0.25:1, 0.5:0.5, 1:1"
    page.mouse.click(*strengths.at(0.25, 1), button="right")
    assert strengths.text == "0:0, 0.5:0.5, 1:1"
    page.mouse.dblclick(*strengths.at(0.5, 0.5))
    assert strengths.text == "0:0, 1:1"
    page.mouse.dblclick(*strengths.at(0.25, 0.25))  # on the line: added once, not deleted again
    assert strengths.text == "0:0, 0.25:0.25, 1:1"
    strengths.text = "0:1"
    page.mouse.dblclick(*strengths.at(0, 1))
    assert strengths.text == "0:1"  # the last one stays


def test_points_are_dragged_up_to_their_neighbors_and_along_the_ends(strengths):
    strengths.text = "0:0, 0.5:0.5, 1:1"
    strengths.drag((0.5, 0.5), (1, 0.25))
    assert strengths.text == "0:0, 0.99:0.25, 1:1"
    strengths.drag((0, 0), (0.2, 0))
    assert strengths.text == "0.2:0, 0.99:0.25, 1:1"


def test_dragged_above_the_plot_a_point_goes_on_rising_at_the_same_pace(strengths):
    mouse, (x, top) = strengths.page.mouse, strengths.at(1, 1)
    pixels = strengths.at(1, 0)[1] - top  # for 1, before the drag
    edge = strengths.element.locator(".plot").bounding_box()["y"]
    mouse.move(x, top)
    mouse.down()
    values = []
    for y in (edge - pixels, edge - pixels - 1, edge - pixels, edge - 2 * pixels, edge - pixels):  # and back
        mouse.move(x, y)
        values.append(float(strengths.text.split(":")[-1]))
        assert strengths.at(1, values[-1]) == pytest.approx(strengths.line()[-1], abs=0.6)  # on the axis that is drawn
    assert values[0] == values[2] == values[4] and values[0] > 1.9
    assert values[3] - values[0] == pytest.approx(1, abs=0.03)
    mouse.move(x, top)
    assert strengths.text == "0:0, 1:1"
    assert strengths.at(1, 1)[1] == pytest.approx(top, abs=0.6)  # the axis as it was
    mouse.move(x, edge - pixels)
    mouse.up()
    assert strengths.text == f"0:0, 1:{values[0]:g}"


def test_labels_of_any_values_are_short_and_not_cut_off(strengths):
    cases = {"0:0, 1:10000": "15000", "0:-10000, 1:0": "0", "0:-10000, 1:10000": "20000", "0:1e-9": "1.5e-9", "0:-1e-9": "0"}
    for text, highest in cases.items():
        strengths.text = text
        labels = strengths.element.evaluate("""(element) => {
            const left = element.querySelector('.plot').getBoundingClientRect().left
            const labels = [...element.querySelectorAll('.grid text')]
            return labels.map((label) => [label.textContent, label.getBoundingClientRect().left - left])
                .filter(([text]) => !Number.isNaN(Number(text)))
        }""")
        assert labels[-1][0] == highest
        assert min(left for _, left in labels) >= 0, labels


def test_a_muted_or_bypassed_node_shows_its_curve_dimmed(editor, strengths):
    opacity = """() => {
        const selector = '.temporal-unet-curve[aria-label=frame_strengths]'
        let product = 1
        for (let element = document.querySelector(selector); element; element = element.parentElement) {
            const {opacity, filter} = getComputedStyle(element)
            product *= Number(opacity) * Number(filter.match(/opacity\\((.+)\\)/)?.[1] ?? 1)
        }
        return product
    }"""
    for mode, dimmed in ((2, True), (4, True), (0, False)):
        editor.page.evaluate("(mode) => { app.graph.getNodeById(5).mode = mode; app.canvas.setDirty(true, true) }", mode)
        editor.page.wait_for_function(f"(dimmed) => (({opacity})() < 0.9) === dimmed", arg=dimmed)


@pytest.mark.slow
def test_keyboard_moves_adds_and_deletes_points_and_never_the_node(strengths):
    strengths.page.mouse.click(*strengths.at(0, 0))
    press(strengths, "Tab", "ArrowLeft", "Shift+ArrowLeft", "ArrowDown")
    assert strengths.text == "0:0, 0.89:0.95"
    assert strengths.readout == "89 % · 0.95"
    press(strengths, "Shift+ArrowUp", "Shift+Tab", "Shift+ArrowDown", "Insert")
    assert strengths.text == "0:0, 0.45:0.7, 0.89:1.45"
    press(strengths, "Delete")
    assert strengths.text == "0:0, 0.89:1.45"
    press(strengths, "Delete", "Delete", "Delete")
    assert strengths.text == "0:0"
    assert strengths.page.evaluate("() => app.graph._nodes.length") == len(WORKFLOW)


def test_delete_after_a_preset_does_not_take_the_node(strengths):
    strengths.page.evaluate("() => app.canvas.selectItems([app.graph.getNodeById(5)])")
    strengths.element.get_by_label("Pulse").click()
    press(strengths, "Delete", "Backspace")
    assert strengths.page.evaluate("() => app.graph._nodes.length") == len(WORKFLOW)


def test_the_plot_itself_takes_no_focus_and_that_of_a_point_is_shown_where_the_keyboard_has_set_it(strengths):
    page = strengths.page
    page.mouse.click(*strengths.at(0.2, 0.9), button="right")
    assert not page.evaluate("() => document.activeElement.matches('.temporal-unet-curve *')")
    if strengths.editor.renderer == "nodes2":
        close_menu(page)
    strengths.element.get_by_label("Pulse").focus()
    press(strengths, "Tab")
    assert strengths.handles.first.evaluate("(handle) => handle === document.activeElement")
    assert strengths.handles.first.evaluate("(handle) => getComputedStyle(handle.firstChild).stroke") != "none"


@pytest.mark.slow
def test_undo_and_redo_go_edit_by_edit_and_keep_the_focus(strengths):
    strengths.page.evaluate("""() => {  // alone: the host takes for an edit that a node made again has another size
        for (const node of [...app.graph._nodes]) if (node.id != 5) app.graph.remove(node)
        app.canvas.emitBeforeChange()
        app.canvas.emitAfterChange()
    }""")
    strengths.drag((1, 1), (1, 0.5))
    press(strengths, "ArrowUp")
    strengths.element.get_by_label("Pulse").click()
    steps = ["0:0, 1:1", "0:0, 1:0.5", "0:0, 1:0.505", "0:0, 0.4:0, 0.5:0.505, 0.6:0, 1:0"]

    def undo(keys, expected):
        press(strengths, keys)
        strengths.page.wait_for_function("""(text) => !app.extensionManager.workflow.activeWorkflow.changeTracker._restoringState
            && app.graph.getNodeById(5)?.widgets.find(({name}) => name === 'frame_strengths').value === text""", arg=expected)

    assert strengths.text == steps[3]
    for expected in steps[2::-1]:
        undo("Control+z", expected)
    for expected in steps[1:]:
        undo("Control+Shift+Z", expected)
    strengths.handles.nth(1).focus()
    undo("Control+z", steps[2])
    strengths.page.wait_for_function("() => document.activeElement.matches('.handle:nth-child(2)')")
    press(strengths, "ArrowDown")
    assert strengths.text == steps[1]


def test_presets_span_the_curves_own_values_and_turn_over(curve):
    curve.text = "0:2, 1:4"
    for name, expected in {
        "Triangle": "0:2, 0.5:4, 1:2", "Pulse": "0:2, 0.4:2, 0.5:4, 0.6:2, 1:2",
        "Ease": "0:2, 0.2:2.208, 0.4:2.704, 0.6:3.296, 0.8:3.792, 1:4", "Linear": "0:2, 1:4",
    }.items():
        curve.element.get_by_label(name).click()
        assert curve.text == expected
    curve.element.get_by_label("Linear").click()
    assert curve.text == "0:4, 1:2"


def test_text_that_is_no_curve_gives_the_plain_error_and_stays_inert(curve):
    name = NAMES[curve.node_type]
    for case in CASES["bad"][-4:]:
        curve.text = case["text"]
        assert curve.message == f"{name}: {INPUTS[curve.node_type]}: {case['error']}; {CASES['form']}."
        assert curve.handles.count() == 0 and curve.line() == []
    curve.page.mouse.dblclick(*curve.at(0.5, 1))
    assert curve.text == CASES["bad"][-1]["text"]  # not overwritten
    assert curve.element.locator("img, svg svg, script").count() == 0
    assert curve.page.evaluate("() => window.hostile") is None
    curve.element.get_by_label("Linear").click()
    assert curve.message == "" and curve.handles.count() == 2


def test_python_gives_the_same_message_for_a_hostile_text(editor, server, strengths):
    strengths.text = "<img src=x onerror=window.hostile=1>"
    answer = editor.page.evaluate("async () => app.api.queuePrompt(0, await app.graphToPrompt())")
    details = [error["details"] for error in answer["node_errors"]["5"]["errors"]]  # one for each input that is looked at
    assert {text.split(" - ", 1)[1] for text in details} == {strengths.message.removeprefix(f"{NAMES[APPLY]}: ")}
    server.wait(answer["prompt_id"], timeout=60)  # of what does not depend on it
    assert editor.page.evaluate("() => window.hostile") is None
    editor.page.keyboard.press("Escape")


def test_a_text_of_very_many_or_very_large_points_is_drawn(strengths):
    strengths.text = ", ".join(f"{i / 5000}:{i % 7 * (1 if i < 2500 else 0.5)}" for i in range(5000))
    corners = strengths.line()
    assert len(corners) < 5000 and strengths.handles.count() == 0
    for first, last, highest in ((0, 0.49, 6), (0.51, 1, 3)):
        (left, low), (right, high) = strengths.at(first, 0), strengths.at(last, highest)
        heights = [y for x, y in corners if left <= x <= right]
        assert (max(heights), min(heights)) == pytest.approx((low, high), abs=0.6)
    strengths.text = "0:1e4, 1:-1e4"
    assert strengths.handles.count() == 2
    strengths.text = "0.5:3"
    assert strengths.handles.count() == 1


def test_a_linked_input_is_read_only(editor, curve):
    before = curve.text
    curve.page.evaluate("""([type, name]) => {
        const text = LiteGraph.createNode('PrimitiveString')
        app.graph.add(text)
        const node = app.graph._nodes.find((node) => node.type === type)
        text.connect(0, node, node.inputs.findIndex((input) => input.name === name))
    }""", [curve.node_type, INPUTS[curve.node_type]])
    assert curve.message == "set by the linked input"
    assert curve.handles.count() == 0
    assert curve.element.get_by_label("Linear").is_disabled()
    curve.page.mouse.dblclick(*curve.at(0.5, 1))
    assert curve.text == before
    curve.page.evaluate("""([type, name]) => {
        const node = app.graph._nodes.find((node) => node.type === type)
        node.disconnectInput(node.inputs.findIndex((input) => input.name === name))
    }""", [curve.node_type, INPUTS[curve.node_type]])
    assert curve.message == "" and curve.handles.count() == 2


def test_guidance_curve_is_shown_for_guidance_by_curve_only(editor):
    curve = Curve(editor, SAMPLER)
    height = editor.node_boxes()["8"][3] - editor.node_boxes()["8"][1]
    editor.set_widget(SAMPLER, "guidance", "triangle")
    curve.element.wait_for(state="hidden")
    editor.drawn()
    assert editor.node_boxes()["8"][3] - editor.node_boxes()["8"][1] <= height
    editor.set_widget(SAMPLER, "guidance", "curve")
    curve.element.wait_for()
    assert curve.handles.count() == 2


@pytest.fixture
def promoted(editor):
    """The curve in a subgraph, whose node outside has its text as the widget `curve`."""
    editor.load_api(WORKFLOW, "curves")  # to its end: only then does the host begin to keep the steps of undo
    editor.page.evaluate("""() => {
        const {node} = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(5)]))
        const inner = node.subgraph._nodes.find((node) => node.type.startsWith('TemporalUNet'))
        const slot = inner.inputs.find((input) => input.name === 'frame_strengths')
        node.subgraph.addInput('curve', slot.type).connect(slot, inner)
    }""")
    yield Promoted(editor)
    editor.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


WITHOUT_SIZES = """() => JSON.stringify(app.extensionManager.workflow.activeWorkflow.changeTracker.activeState,
    (key, value) => ['size', 'ds', 'id', 'bounding'].includes(key) ? undefined : value)"""


class Promoted:
    OUTER = "app.rootGraph._nodes.find((node) => node.subgraph)"  # again each time: undo makes another

    def __init__(self, editor):
        self.editor, self.page = editor, editor.page

    def enter(self):
        self.page.evaluate(f"() => app.canvas.openSubgraph({self.OUTER}.subgraph, {self.OUTER})")
        self.editor.drawn()
        return Curve(self.editor, APPLY)

    @property
    def text(self):
        return self.page.evaluate(f"() => {self.OUTER}.widgets.find(({{name}}) => name === 'curve').value")

    @text.setter
    def text(self, text):
        self.page.evaluate(f"""(text) => {{
            app.canvas.setGraph(app.rootGraph)
            const widget = {self.OUTER}.widgets.find(({{name}}) => name === 'curve')
            widget.value = text
            widget.callback?.(text)
            app.canvas.emitBeforeChange()
            app.canvas.emitAfterChange()
        }}""", text)

    @property
    def sent(self):
        [inputs] = [node["inputs"] for node in self.editor.prompt().values() if node["class_type"] == APPLY]
        return inputs["frame_strengths"]

    def undone(self):
        """Its text after a step of undo; sizes that nodes take when drawn again may be a step before it."""
        before, state = self.text, self.page.evaluate(WITHOUT_SIZES)
        for _ in range(3):
            self.page.keyboard.press("Control+z")
            self.editor.drawn()  # the undo has begun then
            self.page.wait_for_function(
                f"() => !app.extensionManager.workflow.activeWorkflow.changeTracker._restoringState && {self.OUTER}")
            if self.text != before:
                break
            assert self.page.evaluate(WITHOUT_SIZES) == state, "a step of undo besides those of the text and of sizes"
        return self.text


def wait_for_undo_step(page, text):
    """The editor notes a step of undo some time after it was made; two that it notes together would be one step."""
    page.wait_for_function(
        "(text) => JSON.stringify(app.extensionManager.workflow.activeWorkflow.changeTracker.activeState).includes(text)", arg=text)


@pytest.mark.slow
def test_promoted_to_a_subgraph_its_text_is_drawn_inside_and_what_is_drawn_becomes_its_text(promoted):
    promoted.text = "0:0.5, 0.25:1, 1:0"
    assert promoted.sent == promoted.text  # before the edits: it makes the host reorder the nodes, which is a step of undo
    curve = promoted.enter()
    assert curve.line()[2] == pytest.approx(curve.at(0.25, 1), abs=0.6)
    curve.drag((1, 0), (0.75, 0.5))
    assert promoted.text == "0:0.5, 0.25:1, 0.75:0.5"
    wait_for_undo_step(curve.page, promoted.text)
    assert curve.line()[-1] == pytest.approx(curve.at(1, 0.5), abs=0.6)
    curve.element.get_by_label("Triangle").click()
    wait_for_undo_step(curve.page, promoted.text)
    assert promoted.text == promoted.sent == "0:0.5, 0.5:1, 1:0.5"
    for expected in ("0:0.5, 0.25:1, 0.75:0.5", "0:0.5, 0.25:1, 1:0"):
        assert promoted.undone() == expected
        assert promoted.enter().handles.count() == 3
    promoted.text = "0:1"
    assert promoted.enter().handles.count() == 1


@pytest.mark.slow
def test_with_several_subgraph_nodes_or_a_link_to_one_the_curve_inside_is_read_only(promoted):
    page = promoted.page
    page.evaluate(f"() => app.graph.add(LiteGraph.createNode({promoted.OUTER}.type))")
    promoted.text = "0:0, 0.5:1, 1:0"
    curve = promoted.enter()
    assert (curve.message, curve.handles.count()) == ("set on several subgraph nodes", 0)
    page.evaluate("""(text) => {
        app.canvas.setGraph(app.rootGraph)
        for (const node of app.graph._nodes) if (node.subgraph) node.widgets.find(({name}) => name === 'curve').value = text
    }""", promoted.text)
    curve = promoted.enter()
    assert curve.readout == "set on several subgraph nodes"
    ring, dot = curve.handles.first.evaluate("(handle) => [...handle.children].map((circle) => getComputedStyle(circle).stroke)")
    assert ring == "none" != dot
    page.mouse.dblclick(*curve.at(0.25, 1))
    assert promoted.text == "0:0, 0.5:1, 1:0"
    page.evaluate(f"""() => {{
        app.canvas.setGraph(app.rootGraph)
        app.graph.remove(app.graph._nodes.findLast((node) => node.subgraph))
        const text = LiteGraph.createNode('PrimitiveString'), outer = {promoted.OUTER}
        app.graph.add(text)
        text.connect(0, outer, outer.inputs.findIndex((input) => input.name === 'curve'))
    }}""")
    assert promoted.enter().message == "set by the linked input"


@pytest.mark.slow
@pytest.mark.parametrize("opened_editor", ["nodes2"], indirect=True)  # over the classic renderer's elements the host has no menu
def test_the_hosts_menu_over_the_plot_is_the_nodes_and_offers_nothing_for_the_editor(promoted):
    page, curve = promoted.page, promoted.enter()
    page.mouse.click(*curve.at(0.2, 0.95), button="right")
    page.get_by_role("menuitem", name="Convert to Subgraph").wait_for()
    assert page.get_by_role("menuitem", name="Widget:").count() == 0
    close_menu(page)
