"""The sampler shows few inputs: those of Video Options, and a curve that does not guide, only where they act."""

import contextlib
import copy
import time

import pytest
from playwright.sync_api import TimeoutError

from support.curve_widget import SAMPLER, WORKFLOW
from support.prompts import only

USUAL = ["seed", "control_after_generate", "steps", "min_cfg", "max_cfg", "guidance", "sampler_name", "scheduler", "denoise"]
# What of the sampler is on the page: in Nodes 2.0 the labels of its rows (control_after_generate has none), in the classic
# renderer the widgets that it draws, but for takes: it draws advanced ones too.
SHOWN = """() => {
    const node = app.canvas.graph._nodes.find(({type}) => type === 'TemporalUNetSVDSampler')
    const own = node.widgets.filter(({name}) => !/_editor|moving_preview|^takes$/.test(name))
    if (!LiteGraph.vueNodesMode) return own.filter((widget) => node.isWidgetVisible(widget)).map(({name}) => name)
    const words = document.querySelector(`[data-node-id="${node.id}"]`).innerText.split('\\n').map((line) => line.trim())
    return own.map(({name}) => name).filter((name) => words.includes(name) || name === 'control_after_generate')
}"""


def workflow(**sampler):
    """With every input of the sampler: the host gives one that is left out what a node of that id had in an earlier workflow."""
    prompt = copy.deepcopy(WORKFLOW)
    prompt[only(prompt, SAMPLER)]["inputs"] |= {"guidance": "linear", "keep_colors": True, **sampler}
    return prompt


def check_shown(editor, *more):
    """Nodes 2.0 draws a change some time after it was made."""
    with contextlib.suppress(TimeoutError):
        editor.page.wait_for_function(f"(names) => ({SHOWN})().join() === names.join()", arg=[*USUAL, *more], timeout=20_000)
    assert editor.page.evaluate(SHOWN) == [*USUAL, *more]


def height(editor):
    """Of the sampler, once two looks at it agree: a busy page lays it out some time after a change."""
    sampler, heights = only(editor.prompt(), SAMPLER), []
    while len(heights) < 2 or heights[-1] != heights[-2]:
        editor.page.wait_for_timeout(100)
        editor.drawn()
        _, top, _, bottom = editor.node_boxes()[sampler]
        heights.append(bottom - top)
    return heights[-1]


def check_height(editor, at_least, at_most):
    """Within 20 s: on a very busy page two looks can agree before it is laid out."""
    deadline = time.monotonic() + 20
    while not at_least <= (found := height(editor)) <= at_most:
        assert time.monotonic() < deadline, f"{at_least} <= {found} <= {at_most}"


def saved_sampler(workflow):
    return next(node for node in workflow["nodes"] if node["type"] == SAMPLER)


@pytest.mark.slow
def test_few_inputs_are_shown_and_the_nodes_height_follows(editor):
    editor.load_api(workflow(), "few")
    editor.look_at(SAMPLER)
    check_shown(editor)
    without = height(editor)
    editor.set_widget(SAMPLER, "guidance", "curve")
    check_shown(editor, "guidance_curve")
    check_height(editor, without + 100, without + 1000)  # with the curve's editor
    editor.set_widget(SAMPLER, "guidance", "linear")
    check_shown(editor)
    check_height(editor, 0, without + 5)


@pytest.mark.slow
def test_an_old_workflow_shows_each_input_that_acts_with_its_value_in_its_old_place(editor):
    editor.load_api(workflow(), "new")
    new = editor.workflow()
    old, sampler = copy.deepcopy(new), saved_sampler(new)
    old_sampler = saved_sampler(old)
    old_sampler["inputs"] = [one for one in sampler["inputs"] if one["name"] != "options"]
    old_sampler["size"] = [sampler["size"][0], 700]
    assert sampler["widgets_values"][-8:] == ["0:1, 1:2", 0, 1, 0, 6, False, True, 1]
    old_sampler["widgets_values"][-8:] = ["0:1, 1:2", 0, 0.5, 9, 6, False, False]  # takes came later
    editor.load_template(old, "old")
    editor.look_at(SAMPLER)
    check_shown(editor, "guidance_end", "window_frames", "keep_colors")
    found = editor.prompt()[only(editor.prompt(), SAMPLER)]["inputs"]
    expected = {"guidance_start": 0, "guidance_end": 0.5, "window_frames": 9, "window_overlap": 6, "closed_loop": False}
    assert {name: found[name] for name in expected} == expected and found["keep_colors"] is False
    assert saved_sampler(editor.workflow())["widgets_values"] == [*old_sampler["widgets_values"], 1]
    editor.set_widget(SAMPLER, "window_frames", 0)  # not taken away while it is edited
    check_shown(editor, "guidance_end", "window_frames", "keep_colors")
    assert saved_sampler(editor.workflow())["size"][1] <= 700 - 4 * 24  # three inputs of Video Options and the curve


@pytest.mark.slow
def test_a_linked_input_is_shown(editor):
    length = {"class_type": "PrimitiveInt", "inputs": {"value": 3}}
    editor.load_api(workflow(window_frames=["length", 0]) | {"length": length}, "linked")
    editor.look_at(SAMPLER)
    check_shown(editor, "window_frames")
    assert editor.prompt()[only(editor.prompt(), SAMPLER)]["inputs"]["window_frames"][1] == 0
