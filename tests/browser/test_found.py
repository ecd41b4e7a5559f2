"""The words that people type into the editor's search of nodes lead to a node or the blueprint of ours."""

import re

import pytest

from tools.environments import PACK

BLUEPRINT = "Image to Video (SVD)"
QUERIES = [
    "image to video", "img2vid", "i2v", "svd", "stable video diffusion", "animate", "photo to video", "extend video", "loop",
    "long video", "controlnet video", "unet", "load checkpoint",
]
STORE = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get"
# The editor's list of how often nodes of the host are used, by which it ranks, has come.
RANKED = f"() => {STORE}('nodeFrequency')?.isLoaded"
# What is found, from the first on: the search that all of the editor's lists and boxes use.
SEARCH = f"""(query) => {STORE}('nodeDef').nodeSearchService.searchNode(query).map((node) => ({{
    name: node.name, title: node.display_name, module: node.python_module, used: {STORE}('nodeFrequency').getNodeFrequency(node)
}}))"""


def is_ours(found):
    return found["module"] == f"custom_nodes.{PACK}" or found["title"] == BLUEPRINT


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def named_so(found, query):
    """Does its name hold the query? The editor puts these first, whatever search words another node has."""
    return all(any(word in name.lower() for name in (found["name"], found["title"])) for word in words(query))


@pytest.mark.parametrize("opened_editor", ["classic"], indirect=True)  # both renderers have the same search
def test_each_query_finds_ours_among_the_first_three_that_a_pack_can_come_before(editor):
    """The editor ranks by name first, then by how often a node of the host is used, which no pack's is, then by search words."""
    editor.page.wait_for_function(RANKED)
    for query in QUERIES:
        found = editor.page.evaluate(SEARCH, query)
        counted = [entry for entry in found if is_ours(entry) or not (named_so(entry, query) or entry["used"])]
        assert any(is_ours(entry) for entry in counted[:3]), f"{query}: {[entry['title'] for entry in counted[:5]]}"
        first = next(index for index, entry in enumerate(found) if is_ours(entry))
        assert first < 10, f"{query}: ours come after {[entry['title'] for entry in found[:first]]}"


def test_the_library_files_our_nodes_in_four_rooms(server):
    rooms = {}
    for node in server.get("/object_info").values():
        if node["python_module"] == f"custom_nodes.{PACK}":
            rooms.setdefault(node["category"], []).append(node["display_name"])
    assert rooms.keys() == {"Temporal UNet/Loaders", "Temporal UNet/Video", "Temporal UNet/ControlNet", "Temporal UNet/Model"}
