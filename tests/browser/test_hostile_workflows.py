"""Workflows and events that nobody makes by hand: whatever they hold, the editor keeps working, also after a reload."""

import copy

import pytest

from support.curve_widget import APPLY, SAMPLER, WORKFLOW, Curve, type_text
from support.editor import Editor

pytestmark = pytest.mark.slow

MANY = 200_000  # points: more than the arguments that a JavaScript call can take
HUGE = ",".join(f"{i / MANY}:{i % 7}" for i in range(MANY))
DRAFT_IS_KEPT = "(size) => JSON.stringify(localStorage).length > size"  # by the host, to open it after a reload
FORGED_EVENTS = """() => {
    const sampler = app.graph._nodes.find(({type}) => type === 'TemporalUNetSVDSampler')
    const step = {node_id: String(sampler.id), prompt_id: 'forged', fps: 6, step: 1, steps: 2, frames: 3}
    const image = 'data:image/jpeg;base64,AAAA' // no image
    const sheet = {...step, image, shown: [0, 1, 2], columns: 3, rows: 1, width: 16, height: 9}
    const odd = [null, NaN, -1, 0, 'x', '__proto__', [], [9], {}, true, '<img src=x onerror=window.hostile=1>']
    const keys = Object.keys({...sheet, window: 0}).filter((key) => key !== 'prompt_id') // which is any text
    const send = (event) => app.api.dispatchCustomEvent('temporal_unet.preview', event)
    for (const value of odd) for (const event of [value, ...keys.map((key) => ({...sheet, [key]: value}))]) send(event)
    const {display} = sampler.widgets.find(({name}) => name.startsWith('moving_preview')).element.style
    send({...JSON.parse('{"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}}'), ...sheet})
    app.api.dispatchCustomEvent('b_preview_with_metadata', {blob: new Blob(), displayNodeId: sampler.id})
    return {display, polluted: ({}).polluted ?? null, hostile: window.hostile ?? null}
}"""


@pytest.fixture
def fresh(editor, browser, server):
    """An editor of its own, because it keeps what was open, and is loaded again."""
    fresh = Editor(browser, server, editor.renderer)
    fresh.problems.clear()
    yield fresh
    fresh.page.close()
    assert fresh.problems == []


def workflow(**curves):
    prompt = copy.deepcopy(WORKFLOW)
    prompt["5"]["inputs"]["frame_strengths"] = curves.get("strengths", "0:0, 1:1")
    prompt["8"]["inputs"]["guidance_curve"] = curves.get("guidance", "0:1, 1:2")
    return prompt


def opened(editor, prompt, node_type):
    editor.load_api(prompt, "hostile")
    editor.page.evaluate("() => { app.graph._nodes.find(({type}) => type === 'TemporalUNetSVDSampler').pos = [3000, 0] }")
    return Curve(editor, node_type)


def test_a_huge_curve_is_opened_drawn_and_edited_as_text_and_so_is_what_comes_after_it_and_after_a_reload(fresh):
    huge = opened(fresh, workflow(strengths=HUGE), APPLY)
    assert huge.text == HUGE and huge.readout == f"{MANY:,} points: edit the text"
    assert 100 < len(huge.line()) < 5000
    type_text(huge, "0:1, 1:0.5")
    assert huge.handles.count() == 2
    assert opened(fresh, workflow(), SAMPLER).handles.count() == 2
    opened(fresh, workflow(guidance=HUGE), SAMPLER)
    fresh.page.wait_for_function(DRAFT_IS_KEPT, arg=len(HUGE))
    fresh.page.reload()
    fresh.wait_until_ready()
    assert fresh.widget(SAMPLER, "guidance_curve") == HUGE
    assert opened(fresh, workflow(), SAMPLER).handles.count() == 2


def test_a_value_that_is_no_text_is_reported_and_kept_as_it_is(editor):
    editor.load_api(workflow(), "hostile")
    saved = editor.workflow()
    [values] = [node["widgets_values"] for node in saved["nodes"] if node["type"] == SAMPLER]
    place = values.index("0:1, 1:2")
    for value in (5, None, True, ["0:1", "1:2"], {"a": 1}):
        values[place] = value
        editor.load_template(copy.deepcopy(saved), "hostile")
        curve = Curve(editor, SAMPLER)
        assert curve.message.startswith("SVD Temporal UNet Sampler: guidance_curve: found ")
        [kept] = [node["widgets_values"] for node in editor.workflow()["nodes"] if node["type"] == SAMPLER]
        assert kept[place] == value
        curve.element.get_by_label("Linear").click()
        assert curve.handles.count() == 2


def test_a_name_that_is_too_long_to_ask_about_is_reported_without_asking(editor):
    prompt = workflow()
    [loader] = [node for node in prompt.values() if node["class_type"] == "TemporalUNetLoader"]
    loader["inputs"]["unet_name"] = "x" * 100_000
    editor.load_api(prompt, "hostile")
    editor.look_at("TemporalUNetLoader")
    editor.page.get_by_test_id("temporal-unet-info").filter(has_text="x… is not in models/diffusion_models").wait_for()


def test_what_the_packs_scripts_ask_of_another_address_is_reported(editor):
    """The test of what all tests here rely on: that no script of the pack asks anything but the server."""
    editor.page.evaluate("""() => {
        const script = document.createElement('script')
        script.textContent = `fetch('http://127.0.0.1:9/').catch(() => {}) // stands for one of ours
            //# sourceURL=${location.origin}/extensions/temporal-unet/js/stand_in.js`
        document.head.append(script)
    }""")
    editor.page.wait_for_timeout(100)
    assert any("'http://127.0.0.1:9/' violates" in problem for problem in editor.problems)
    editor.problems.clear()


def test_a_fault_of_the_curve_editor_does_not_keep_the_host_from_opening_the_workflow(editor):
    editor.load_api(workflow(), "hostile")
    editor.page.evaluate("""() => {
        const {node} = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(5)]))
        const [inner] = node.subgraph._nodes
        const slot = inner.inputs.find((input) => input.name === 'frame_strengths')
        node.subgraph.addInput('curve', slot.type).connect(slot, inner)
    }""")
    saved = editor.workflow()
    for link in saved["definitions"]["subgraphs"][0]["links"]:
        if link["origin_id"] == -10:  # the subgraph's inputs
            link["origin_slot"] = 99
    editor.load_template(saved, "hostile")
    assert editor.page.evaluate("() => app.rootGraph._nodes.length") == len(WORKFLOW)
    assert editor.problems and all("at sourceOf" in problem for problem in editor.problems)
    assert opened(editor, workflow(), APPLY).handles.count() == 2
    editor.problems.clear()


def test_forged_preview_events_are_ignored(editor):
    editor.load_api(workflow(), "hostile")
    assert editor.page.evaluate(FORGED_EVENTS) == {"display": "none", "polluted": None, "hostile": None}
    editor.page.wait_for_timeout(500)  # that data is no image is noticed later
