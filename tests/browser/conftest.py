"""One real server with the pack, untrained models and the miniature; one Chromium; the editor in each of its renderers."""

import os
import shutil
import sys
from pathlib import Path

import pytest

import dev
from support.editor import RENDERERS, Editor, chromium
from tools.server import Server


@pytest.fixture(scope="session")
def host():
    if "TEMPORAL_UNET_HOST" not in os.environ:
        pytest.fail("TEMPORAL_UNET_HOST names no ComfyUI: run the tests with `python dev.py test`.")
    return Path(os.environ["TEMPORAL_UNET_HOST"])


@pytest.fixture(scope="session")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def server(host, browser, tmp_path_factory):  # after the browser: without one nothing else need start
    base = tmp_path_factory.mktemp("base")
    under_test = dev.Host("under test", host, Path(sys.executable))
    for models in (dev.untrained_models(under_test), dev.demo_models(under_test)):  # the trained miniature: real motion
        shutil.copytree(models, base / "models", dirs_exist_ok=True)
    (base / "input").mkdir()
    shutil.copy(host / "input" / "example.png", base / "input")
    shutil.copy(base / "models" / "first_frame.png", base / "input")
    with Server(host, Path(sys.executable), base, cpu=True) as server:
        yield server


@pytest.fixture(scope="session", params=[
    name if name == "classic" else pytest.param(name, marks=pytest.mark.slow) for name in RENDERERS
])
def opened_editor(request, browser, server):
    """The editor in a renderer; the quick round leaves out that which takes twice the time."""
    editor = Editor(browser, server, request.param)
    assert editor.problems == [], "on opening the editor"
    yield editor
    editor.page.close()


@pytest.fixture
def editor(opened_editor):
    """The editor; the test fails where the page reported an error or a warning meanwhile."""
    opened_editor.problems.clear()
    yield opened_editor
    assert opened_editor.problems == []
