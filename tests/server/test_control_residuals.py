"""Residuals as a user has them: computed and saved by one prompt, loaded and applied by the next."""

import numpy as np
from prompts import image_model, node, with_control

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


def test_computed_saved_loaded_and_applied(server):
    save = node("TemporalUNetSaveControlNetResiduals", residuals=["residuals", 0], filename_prefix="residuals/test")
    prompt = {name: part for name, part in controlled(COMPUTED).items() if name not in ("sampler", "decode", "save", "control")}
    (told,) = server.run(prompt | {"save": save})["outputs"]["save"]["residuals"]
    path = server.base / "output" / told["subfolder"] / told["filename"]
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
