"""What the server gives the front end of the pack's texts in other languages."""

from tools.assets.make_locales import LANGUAGES, PREFIX, outdated_help, read
from tools.environments import PACK


def test_the_server_serves_the_nodes_in_six_languages(server):
    served = server.get("/api/i18n")
    for language in LANGUAGES:
        assert served[language]["nodeDefs"] == read(language), language


def test_what_is_served_fits_the_nodes_that_are_served(server, node_info):
    """The front end finds a text by the node's id, the input's name and the output's index."""
    for node_id, texts in server.get("/api/i18n")["en"]["nodeDefs"].items():
        info = node_info[node_id]
        inputs = {name for kind in ("required", "optional") for name in info["input_order"].get(kind, [])}
        outputs = {str(index): name for index, name in enumerate(info["output_name"])}
        assert texts["display_name"] == info["display_name"]
        assert texts["inputs"].keys() == inputs, node_id
        assert {index: item["name"] for index, item in texts.get("outputs", {}).items()} == outputs, node_id


def test_help_is_served_for_languages_without_a_page_of_their_own(server, node_info):
    """Else run `python dev.py make locales`."""
    assert outdated_help() == []
    for node_id in filter(lambda name: name.startswith(PREFIX), node_info):
        assert server.get(f"/extensions/{PACK}/docs/{node_id}.md") == server.get(f"/extensions/{PACK}/docs/{node_id}/en.md")
