"""Residuals as a user has them: computed and saved by one prompt, loaded and applied by the next."""

import os
import time

import numpy as np
import pytest

import dev
from support.prompts import image_model, node, with_control
from tools.server import failure

UNET = "untrained_sd15.safetensors"


def controlled(residuals: dict) -> dict:
    """A prompt whose control is the residuals of these nodes, the one of id "residuals" among them."""
    prompt = with_control(image_model(UNET, 768), "sampler", residuals=["residuals", 0])
    prompt["sampler"]["inputs"]["seed"] = 1
    for name in ("control_net", "image"):
        del prompt["control"]["inputs"][name]
    return prompt | residuals


COMPUTED = {"residuals": node(
    "TemporalUNetComputeControlNetResiduals", model=["unet", 0], positive=["positive", 0], control_net=["control_net", 0],
    image=["control_photo", 0], latent_image=["latent", 0],
)}


@pytest.mark.slow
def test_computed_saved_loaded_and_applied(server):
    save = node("TemporalUNetSaveControlNetResiduals", residuals=["residuals", 0], filename_prefix="residuals/test")
    prompt = {name: part for name, part in controlled(COMPUTED).items() if name not in ("sampler", "decode", "save", "control")}
    (saved,) = server.run(prompt | {"save": save})["outputs"]["save"]["residuals"]
    path = server.base / "output" / saved["subfolder"] / saved["filename"]
    path.rename(server.base / "input" / "mine.safetensors")
    loaded = {"residuals": node("TemporalUNetLoadControlNetResiduals", residuals_name="mine.safetensors")}
    pictures = server.pictures(server.run(controlled(loaded)))
    assert np.array_equal(pictures, server.pictures(server.run(controlled(COMPUTED))))
    plain = image_model(UNET, 768)
    plain["sampler"]["inputs"]["seed"] = 1
    assert not np.array_equal(pictures, server.pictures(server.run(plain)))


def test_a_file_of_another_kind_is_one_error_that_names_it(server):
    (server.base / "input" / "page.safetensors").write_text("<!DOCTYPE html>" + " " * 200)
    prompt = controlled({"residuals": node("TemporalUNetLoadControlNetResiduals", residuals_name="page.safetensors")})
    message = server.fault(prompt)["exception_message"]
    assert "Load ControlNet Residuals: page.safetensors: it is a web page" in message


def loaded(name) -> dict:
    load = node("TemporalUNetLoadControlNetResiduals", residuals_name=name)
    return {"residuals": load, "show": node("PreviewAny", source=["residuals", 0])}


def said(text: str) -> dict:
    return {"text": node("PrimitiveString", value=text), "say": node("PreviewAny", source=["text", 0])}


@pytest.fixture
def pipe(server):
    """A file in the input folder that nobody ever writes to."""
    path = server.base / "input" / "pipe.safetensors"
    os.mkfifo(path)
    yield path.name
    path.unlink()


@pytest.mark.parametrize("name", ["/dev/zero", "/etc/passwd", "../server.log", "pipe.safetensors", "", "a\0.safetensors"])
def test_what_is_no_file_of_the_input_folder_is_refused_before_the_run(server, pipe, name):
    with pytest.raises(dev.ServerError, match="residuals_name - '"):
        server.queue(loaded(name))


@pytest.mark.parametrize("name", ["/dev/zero", "pipe.safetensors"])
def test_a_node_that_the_host_refused_does_not_hold_up_the_others(server, pipe, name):
    """The host drops the output but asks all nodes of the prompt whether they have changed."""
    text = f"next to {name}"
    entry = server.wait(server.queue(loaded(name) | said(text)), 30)
    assert failure(entry) is None and entry["outputs"]["say"]["text"] == [text]


@pytest.mark.slow
@pytest.mark.one_host
def test_an_interrupt_ends_a_look_at_a_large_file(server):
    path = server.base / "input" / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(2**37)  # a hole; all of it would take a minute
    try:
        prompt_id = server.queue(loaded(path.name))
        while not server.get("/queue")["queue_running"]:
            time.sleep(0.02)
        time.sleep(0.3)  # the host forgets an interrupt that comes before a run begins
        server.interrupt()
        assert failure(server.wait(prompt_id, 20)).startswith("interrupted at")
    finally:
        path.unlink()
    server.run(said("and the next runs"))
