"""The registry's package: comfy-cli accepts it, it is small, and nothing in it refers to a file that is not in it."""
import json
import re
import zipfile
from pathlib import PurePosixPath
from posixpath import normpath
from urllib.parse import unquote

import pytest
from PIL import Image

from support.packed import comfy_node, copy_repository, package  # noqa: F401 (a fixture)
from tools.environments import ROOT

MEGABYTE = 1_000_000
WEIGHTS = "tools/miniature/weights/"
LINK = re.compile(r"""\]\(([^)\s]+)\)|\b(?:src|href)="([^"]+)\"""")


@pytest.fixture(scope="module")
def files(package):  # noqa: F811
    """name in the package -> its bytes"""
    with zipfile.ZipFile(package) as file:
        return {name: file.read(name) for name in file.namelist()}


def strings(value):
    """All strings in parsed JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def texts(name: str, content: bytes) -> list[str]:
    return [content.decode()] if name.endswith(".md") else list(strings(json.loads(content)))


def links(name: str, text: str):
    """The files of the package that a text refers to; the editor takes a help page's images from web/docs/."""
    folder = "web/docs" if name.startswith("web/docs/") else PurePosixPath(name).parent
    for link in (first or second for first, second in LINK.findall(text)):
        path, _, anchor = unquote(link).partition("#")
        if ":" not in path:
            yield normpath(f"{folder}/{path}") if path else name, anchor


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_comfy_cli_finds_nothing_to_say_against_it(tmp_path):
    said = comfy_node("validate", copy_repository(tmp_path / "pack"))
    assert "All validation checks passed" in said
    assert "arning" not in said, said


def test_it_is_under_6_megabytes_besides_the_weights(package, files):  # noqa: F811
    with zipfile.ZipFile(package) as file:
        weights = sum(info.compress_size for info in file.infolist() if info.filename.startswith(WEIGHTS))
    assert {name.removeprefix(WEIGHTS) for name in files if name.startswith(WEIGHTS)} == {
        "SHA256SUMS", "miniature_svd.safetensors", "miniature_svd_controlnet_path.safetensors"}
    assert package.stat().st_size - weights < 6 * MEGABYTE


def test_it_holds_code_of_the_nodes_alone(files):
    rooms = {PurePosixPath(name).parts[0] for name in files if name.endswith(".py")}
    assert rooms == {"__init__.py", "nodes", "unet"}
    assert {PurePosixPath(name).suffix for name in files if name.startswith("tools/") and not name.startswith(WEIGHTS)} == {
        ".md", ".webp"}
    assert not [name for name in files if name.startswith((".", "tests/"))]


def test_every_link_and_image_leads_to_a_file_in_it(files):
    pages = {name: content for name, content in files.items() if name.endswith((".md", ".json"))}
    found = [(name, *link) for name, content in pages.items() for text in texts(name, content) for link in links(name, text)]
    assert len(found) > 30, "the pattern finds no links"
    assert [(name, path) for name, path, _ in found if path not in files] == []
    assert [(name, path, anchor) for name, path, anchor in found
            if anchor and anchor not in anchors(files[path].decode())] == []


def test_what_users_read_in_the_editor_names_nothing_that_only_the_repository_has(files):
    shown = [name for name in files if name.startswith(("web/", "locales/", "example_workflows/", "subgraphs/"))]
    named = {name: re.findall(rb"\bdev\.py\b|\btests/\w+|\btools/\w+", files[name]) for name in shown}
    assert {name: found for name, found in named.items() if found} == {}


@pytest.mark.parametrize("key, file, size", [("Icon", "icon.png", (400, 400)), ("Banner", "banner.png", (1260, 540))])
def test_the_registrys_images_have_the_size_that_it_asks_for(key, file, size):
    """At most 800x400 for an icon, 21:9 for a banner (https://docs.comfy.org/registry/specifications)."""
    project = dict(re.findall(r'^(\w+) = "(https:.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    raw = project["Repository"].replace("//github.com/", "//raw.githubusercontent.com/")
    assert project[key] == f"{raw}/main/tools/assets/{file}"
    with Image.open(ROOT / "tools" / "assets" / file) as image:
        assert image.size == size and image.format == "PNG"
