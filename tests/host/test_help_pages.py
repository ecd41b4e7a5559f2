"""The nodes' help pages in six languages: each is of its node, names the inputs as the editor shows them, and is built like the
English one."""

import re

import pytest

from tools.assets.make_locales import DOCS, LANGUAGES, node_defs, outdated_help, read

OTHERS = LANGUAGES[1:]
STRUCTURE = {  # what is counted -> where it begins
    "headings": r"^#+ ",
    "list items": r"^ *- ",
    "table rows": r"^\|",
}


def page(node_id, language):
    return (DOCS / node_id / f"{language}.md").read_text(encoding="utf-8")


def images(text):
    return re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)


def structure(text):
    return {name: len(re.findall(start, text, re.MULTILINE)) for name, start in STRUCTURE.items()}


@pytest.fixture(scope="module")
def node_ids():
    return sorted(node_defs())


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture(params=OTHERS)
def other(request):
    return request.param


def test_each_node_has_a_page_in_each_language_and_one_for_the_rest(node_ids):
    """Else run `python dev.py make locales`."""
    expected = {f"{node_id}{ending}" for node_id in node_ids for ending in (".md", *(f"/{language}.md" for language in LANGUAGES))}
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} == expected
    assert outdated_help() == []


def test_a_page_begins_with_the_name_of_its_node(node_ids, language):
    first_lines = {node_id: page(node_id, language).split("\n")[0] for node_id in node_ids}
    assert first_lines == {node_id: f"# {texts['display_name']}" for node_id, texts in read(language).items()}


def test_a_page_names_each_input_in_bold_by_the_label_that_the_editor_shows(language):
    missing = [(node_id, item["name"]) for node_id, texts in read(language).items() for item in texts["inputs"].values()
               if f"**{item['name']}**" not in page(node_id, language)]
    assert missing == []


def test_no_page_names_an_input_by_its_identifier_where_the_editor_shows_another_label(node_ids, other):
    """But in what stays English: the error messages, which stand in italics."""
    inputs = [(key, item["name"]) for texts in read(other).values() for key, item in texts["inputs"].items()]
    hidden = {key for key, _ in inputs} - {label for _, label in inputs}
    left = [(node_id, key) for node_id in node_ids for key in sorted(hidden)
            if f"**{key}**" in page(node_id, other) or f"`{key}`" in page(node_id, other)]
    assert left == []


def test_a_page_has_the_images_of_the_english_one_in_its_order(node_ids, other):
    for node_id in node_ids:
        assert images(page(node_id, other)) == images(page(node_id, "en")), node_id


def test_a_page_has_as_many_headings_list_items_and_table_rows_as_the_english_one(node_ids, other):
    for node_id in node_ids:
        assert structure(page(node_id, other)) == structure(page(node_id, "en")), node_id
