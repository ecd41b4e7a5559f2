"""The texts of the nodes in six languages: English as the schemas say it, the others complete and exact where that counts."""

import re

import pytest

from tools.assets.make_locales import LANGUAGES, LOCALES, changes, flat, node_defs, read, with_info

OTHERS = LANGUAGES[1:]
# A run of letters, digits, "_", "." and the like with a digit, "_", "/" or a leading "." in it: numbers, dtypes, inputs, folders.
RUN = re.compile(r"[A-Za-z0-9_./:-]*[A-Za-z0-9_]")
SPECIAL = re.compile(r"[0-9_/]|^\.")
TERMS = (
    "UNet", "ControlNet", "ControlNeXt", "T2I-Adapter", "VAE", "SVD", "SVD-XT", "Stable Diffusion", "Stable Video Diffusion",
    "XL", "ComfyUI", "dtype", "safetensors",
)
SYNTAX = "@{}|"  # what the front end's message compiler would read as its own


def exact(text):
    """The numbers and code words of a text."""
    return {run for run in RUN.findall(text) if SPECIAL.search(run)}


def has_word(text, word):
    """Whether a word is in a text as a word of its own; letters beyond ASCII may follow it directly, as they do in Chinese."""
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])", text) is not None


def sentences(texts):
    """The descriptions and tooltips, by their keys."""
    return {key: text for key, text in flat(texts).items() if key.endswith((".description", ".tooltip"))}


@pytest.fixture(scope="module")
def english():
    return node_defs()


@pytest.fixture(scope="module", params=OTHERS)
def other(request):
    return read(request.param)


@pytest.fixture
def pairs(english, other):
    """Key, English and translated text of each description and tooltip."""
    translated = sentences(other)
    return [(key, text, translated[key]) for key, text in sentences(english).items()]


def test_each_language_has_its_folder():
    assert {path.name for path in LOCALES.iterdir()} == set(LANGUAGES)


def test_english_is_what_the_schemas_say(english):
    """Else run `python dev.py make locales`, and translate what it names."""
    assert changes(read("en"), english) == []


def test_english_of_the_panels_is_what_the_code_says_about_files(pack):
    """Else run `python dev.py make locales`, and translate what it names. tests/web compares the other languages with it."""
    texts = read("en", "main")
    assert changes(texts, with_info(texts, pack("nodes.bridge.info.lines").TEMPLATES)) == []


def test_the_categories_of_the_nodes_have_names_in_each_language(english, node):
    """But the pack's own name and technical terms."""
    rooms = {room for node_id in english for room in node(node_id).GET_SCHEMA().category.split("/")[1:]}
    assert {language: read(language, "main")["nodeCategories"].keys() for language in LANGUAGES} == dict.fromkeys(
        LANGUAGES, rooms - set(TERMS))


def test_a_language_has_every_text_and_no_other(english, other):
    assert flat(other).keys() == flat(english).keys()
    assert [key for key, text in flat(other).items() if not text.strip()] == []


def test_no_text_holds_what_the_front_end_reads_as_syntax(english, other):
    assert [key for texts in (english, other) for key, text in flat(texts).items() if set(text) & set(SYNTAX)] == []


def test_descriptions_and_tooltips_are_translated(pairs):
    assert [key for key, text, translation in pairs if translation == text] == []


def test_numbers_and_code_words_are_kept(pairs):
    wrong = {key: (exact(text), exact(translation)) for key, text, translation in pairs if exact(text) != exact(translation)}
    assert wrong == {}


def test_technical_terms_are_kept(pairs):
    lost = [(key, term) for key, text, translation in pairs for term in TERMS
            if has_word(text, term) and not has_word(translation, term)]
    assert lost == []


def test_options_are_called_as_the_list_shows_them(pairs, node):
    """The front end does not translate them."""
    lost = []
    for key, text, translation in pairs:
        inputs = node(key.split(".")[0]).GET_SCHEMA().inputs
        options = {option for item in inputs if item.get_io_type() == "COMBO" for option in item.options}
        lost += [(key, option) for option in options if has_word(text, option) and not has_word(translation, option)]
    assert lost == []


def test_nodes_are_called_by_their_names_in_the_language(english, other, pairs):
    names = {texts["display_name"]: other[node_id]["display_name"] for node_id, texts in english.items()}
    assert len(set(names.values())) == len(names)
    lost = [(key, names[name]) for key, text, translation in pairs for name in names
            if name in text and names[name] not in translation]
    assert lost == []


def test_what_is_one_in_english_is_one_in_the_language(english, other):
    translations = {}
    for key, text in flat(english).items():
        translations.setdefault(text, set()).add(flat(other)[key])
    assert {text: found for text, found in translations.items() if len(found) > 1} == {}


def test_the_inputs_of_a_node_have_different_names(other):
    for node_id, texts in other.items():
        names = [item["name"] for item in texts["inputs"].values()]
        assert len(set(names)) == len(names), (node_id, names)
