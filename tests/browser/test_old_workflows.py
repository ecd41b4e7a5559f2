"""Workflows that older versions of the pack have saved open with each value where it belongs."""

import copy
import json

import pytest

from support.curve_widget import SAMPLER, WORKFLOW
from support.prompts import WORKFLOWS_0_1
from support.stand_ins import write_video

NAMES = sorted(path.stem for path in (WORKFLOWS_0_1 / "api").glob("*.json"))


def make_old(workflow, noise, keep_colors):
    """Changes a workflow's sampler to what 0.1.1 saved: with window_noise before keep_colors, and in subgraphs an input for it."""
    [sampler] = [node for node in workflow["nodes"] if node["type"] == SAMPLER]
    sampler["inputs"].append({"name": "window_noise", "type": "COMBO", "widget": {"name": "window_noise"}, "link": None})
    sampler["widgets_values"][-2:] = [noise, keep_colors]  # takes came later


def default(definition):
    """What the host takes where an input is left out: [type or list of choices, options] -> value."""
    kind, options = definition[0], definition[1] if len(definition) > 1 else {}
    choices = kind if isinstance(kind, list) else options.get("options", [None])
    return options.get("default", choices[0])


def with_defaults(node, names, definitions):
    """A node's inputs; those of `names` that it leaves out at their defaults."""
    inputs = definitions[node["class_type"]]["input"]
    inputs = {**inputs["required"], **inputs.get("optional", {})}
    return node["inputs"] | {name: default(inputs[name]) for name in names - node["inputs"].keys()}


def sent(editor):
    """The prompt, without a widget that the host adds to a node whose id had a video in an earlier run of this page."""
    prompt = editor.prompt()
    for node in prompt.values():
        node["inputs"].pop("video-preview", None)
    return prompt


@pytest.mark.slow
@pytest.mark.parametrize("keep_colors", [False, True])
def test_a_workflow_with_window_noise_opens_with_each_value_in_its_place(editor, keep_colors):
    editor.load_api(WORKFLOW, "new")
    before, workflow = sent(editor), editor.workflow()
    make_old(workflow, "shuffled", keep_colors)
    editor.load_template(workflow, "old")
    [sampler] = [node for node in before.values() if node["class_type"] == SAMPLER]
    sampler["inputs"]["keep_colors"] = keep_colors
    assert sent(editor) == before
    [opened] = [node for node in editor.workflow()["nodes"] if node["type"] == SAMPLER]
    assert "window_noise" not in [slot["name"] for slot in opened["inputs"]]
    assert opened["widgets_values"][-2:] == [keep_colors, 1]


@pytest.mark.slow
def test_every_editor_workflow_of_version_0_1_sends_what_its_api_workflow_says(editor, server):
    write_video(server.base / "input" / "example.png", server.base / "input" / "control.mp4")  # else reported missing
    definitions = server.get("/object_info")
    for name in NAMES:
        said = json.loads((WORKFLOWS_0_1 / "api" / f"{name}.json").read_text(encoding="utf-8"))
        editor.load_template(json.loads((WORKFLOWS_0_1 / f"{name}.json").read_text(encoding="utf-8")), name)
        prompt = sent(editor)
        assert {id: node["class_type"] for id, node in prompt.items()} == {id: node["class_type"] for id, node in said.items()}
        for id, node in prompt.items():
            assert node["inputs"] == with_defaults(said[id], node["inputs"].keys(), definitions), (name, id)


def test_an_api_workflow_with_window_noise_opens_without_it(editor):
    prompt = copy.deepcopy(WORKFLOW)
    prompt["8"]["inputs"] |= {"window_noise": "shuffled", "keep_colors": False}
    editor.load_api(prompt, "old")
    [inputs] = [node["inputs"] for node in editor.prompt().values() if node["class_type"] == SAMPLER]
    assert "window_noise" not in inputs and inputs["keep_colors"] is False
