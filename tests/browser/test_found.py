"""The words that people type into the editor's search of nodes lead to a node or the blueprint of ours."""

import re

import pytest

from tools.environments import PACK

BLUEPRINT = "Image to Video (SVD)"
QUERIES = [
    "image to video", "img2vid", "i2v", "svd", "stable video diffusion", "animate", "photo to video", "extend video", "loop",
    "long video", "controlnet video", "unet", "load checkpoint",
]
# What is found, from the first on: the search that all of the editor's lists and boxes use.
SEARCH = """async (query) => {
    const {$pinia} = document.querySelector('#vue-app').__vue_app__.config.globalProperties
    return $pinia._s.get('nodeDef').nodeSearchService.searchNode(query).map(({name, display_name, python_module}) =>
        ({name, title: display_name, module: python_module}))
}"""


def is_ours(found):
    return found["module"] == f"custom_nodes.{PACK}" or found["title"] == BLUEPRINT


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def named_so(found, query):
    """Does its name hold the query? The editor puts these first, whatever search words another node has."""
    return all(any(word in name.lower() for name in (found["name"], found["title"])) for word in words(query))


@pytest.mark.parametrize("opened_editor", ["classic"], indirect=True)  # both renderers have the same search
def test_each_query_finds_ours_among_the_first_three_that_are_not_named_by_its_very_words(editor):
    """The editor ranks by name first, then by how often a node of the host is used, then by search words."""
    for query in QUERIES:
        found = editor.page.evaluate(SEARCH, query)
        counted = [entry for entry in found if is_ours(entry) or not named_so(entry, query)]
        assert any(is_ours(entry) for entry in counted[:3]), f"{query}: {[entry['title'] for entry in counted[:5]]}"
        first = next(index for index, entry in enumerate(found) if is_ours(entry))
        assert first < 8, f"{query}: ours come after {[entry['title'] for entry in found[:first]]}"


def test_the_library_files_our_nodes_in_three_rooms(server):
    rooms = {}
    for node in server.get("/object_info").values():
        if node["python_module"] == f"custom_nodes.{PACK}":
            rooms.setdefault(node["category"], []).append(node["display_name"])
    assert rooms.keys() == {"Temporal UNet/Loaders", "Temporal UNet/Video", "Temporal UNet/ControlNet"}
