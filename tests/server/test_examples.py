"""Every API workflow of the templates runs on the real server, at a small size, with untrained models or the miniature's."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import dev
from support.families import in_diffusers_layout, random_weights
from support.gguf_networks import write_gguf
from support.prompts import FRAMES, MINIATURE, SIZE, STEPS, node, only
from tools.untrained import SVD

FOLDER = dev.ROOT / "example_workflows" / "api"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
TO_FILE, FROM_FILE = "9a ControlNet residuals to a file", "9b Video from ControlNet residuals in a file"
MINIATURES = [name for name in NAMES if name[0] in "569"]  # with an SVD ControlNet only the UNet fits that it was trained for
LONG = 5  # frames, where windows are wanted
SMALL = {
    "TemporalUNetSVDConditioning": {"width": SIZE, "height": SIZE, "video_frames": FRAMES},
    "TemporalUNetSVDSampler": {"steps": STEPS},
    "TemporalUNetVideoOptions": {"window_frames": FRAMES, "window_overlap": 1},
    "TemporalUNetControlNetLoader": {"control_net_name": "miniature_svd_controlnet_path.safetensors"},
    "EmptyLatentImage": {"width": SIZE, "height": SIZE},
    "KSampler": {"steps": STEPS},
    "LoadImage": {"image": "photo.png"},
}
IMAGE_MODELS = {  # template -> its UNet, its text encoder, its ControlNet; the host knows text encoders at full size only
    "7 Image led by edges (SD 1.5, ControlNet)": (
        "untrained_sd15.safetensors", node("CLIPLoader", clip_name="untrained_clip_l.safetensors", type="stable_diffusion"),
        "untrained_sd15_controlnet.safetensors"),
    "8 Image from text (SDXL)": (
        "untrained_sdxl.safetensors", node("DualCLIPLoader", clip_name1="untrained_clip_l.safetensors",
                                           clip_name2="untrained_clip_g.safetensors", type="sdxl"), None),
}
PARTS = {  # template with a loader for each part -> its UNet, in the layout that it is about
    "1b Image to Video, from diffusers": "small_svd_diffusers.safetensors",
    "1c Image to Video, GGUF": "small_svd.gguf",
}
WRITE_FILM = """
import sys
sys.path.insert(0, sys.argv[1])
import comfy.cli_args
comfy.cli_args.args.cpu = True
import torch
from comfy_extras.frame_interpolation_models.film_net import FILMNet
from safetensors.torch import save_file
save_file({name: torch.randn_like(value) / 50 for name, value in FILMNet().state_dict().items()}, sys.argv[2])
"""


def example(name):
    """A template's API workflow with files that are at hand, at a small size."""
    prompt = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    for each in prompt.values():
        each["inputs"].update(SMALL.get(each["class_type"], {}))
    if name in PARTS:
        return with_small_parts(prompt, PARTS[name])
    loader = only(prompt, "TemporalUNetCheckpointLoader")
    if name in IMAGE_MODELS:
        return with_other_loaders(prompt, loader, *IMAGE_MODELS[name])
    prompt[loader]["inputs"]["ckpt_name"] = MINIATURE if name in MINIATURES else "untrained_svd_checkpoint.safetensors"
    clip = prompt[only(prompt, "TemporalUNetSVDConditioning")]["inputs"]
    if name in MINIATURES:
        clip.pop("clip_vision", None)  # it has none
    if any(each["class_type"] == "TemporalUNetVideoOptions" for each in prompt.values()):
        clip["video_frames"] = LONG
    return prompt


def with_small_parts(prompt, unet):
    """Without the image encoder, which the host knows at full size only."""
    prompt[only(prompt, "TemporalUNetLoader")]["inputs"]["unet_name"] = unet
    prompt[only(prompt, "VAELoader")]["inputs"]["vae_name"] = "untrained_vae.safetensors"
    del prompt[only(prompt, "CLIPVisionLoader")]
    del prompt[only(prompt, "TemporalUNetSVDConditioning")]["inputs"]["clip_vision"]
    return prompt


def with_other_loaders(prompt, loader, unet, clip, control_net):
    """With text encoder and VAE by the host's own loaders: no small checkpoint has them."""
    prompt = copy.deepcopy(prompt)
    prompt[loader]["inputs"]["ckpt_name"] = unet
    prompt["clip"], prompt["vae"] = clip, node("VAELoader", vae_name="untrained_vae.safetensors")
    for each in prompt.values():
        for name, value in each["inputs"].items():
            if value in ([loader, 1], [loader, 2]):
                each["inputs"][name] = ["clip" if value[1] == 1 else "vae", 0]
    if control_net:
        prompt[only(prompt, "TemporalUNetControlNetLoader")]["inputs"]["control_net_name"] = control_net
    return prompt


@pytest.fixture(scope="module")
def files(host, server):
    """What the examples name besides models: the photos and the control video that the pack brings, a model between frames."""
    for path in (dev.ROOT / "web" / "examples").iterdir():
        shutil.copy(path, server.base / "input")
    checkpoints, unets = (server.base / "models" / folder for folder in ("checkpoints", "diffusion_models"))
    write_gguf(unets / PARTS["1c Image to Video, GGUF"], SVD)
    save_file(in_diffusers_layout(SVD, random_weights(SVD)), unets / PARTS["1b Image to Video, from diffusers"])
    dev.link_file(unets / "untrained_sdxl.safetensors", checkpoints / "untrained_sdxl.safetensors")
    dev.link_models(dev.demo_models(host), server.base)
    film = server.base / "models" / "frame_interpolation" / "film_net_fp16.safetensors"
    if (host.folder / "comfy_extras" / "frame_interpolation_models").exists():
        film.parent.mkdir()
        subprocess.run([sys.executable, "-c", WRITE_FILM, str(host.folder), str(film)], check=True)


def frames_of(path: Path) -> tuple[np.ndarray, float]:
    """(frames, frames per second)"""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]), file.streams.video[0].average_rate


@pytest.mark.slow
def test_every_example_makes_what_its_name_says(server, files, node_info):
    """One test, since a later one takes from the server's cache what an earlier one loaded, and needs the file that it wrote.

    Those of one checkpoint follow each other: the server keeps what the last prompt loaded.
    """
    for name in sorted(NAMES, key=lambda name: (name in IMAGE_MODELS, name in PARTS, name in MINIATURES)):
        prompt = example(name)
        if unknown := {each["class_type"] for each in prompt.values()} - node_info.keys():
            assert "FrameInterpolate" in unknown, f"{name}: {unknown}"  # newer than the oldest host
            continue
        if name == TO_FILE:
            [saved] = server.run(prompt)["outputs"][only(prompt, "TemporalUNetSaveControlNetResiduals")]["residuals"]
            assert saved["filename"] == example(FROM_FILE)["8"]["inputs"]["residuals_name"]
            shutil.move(server.base / "output" / saved["subfolder"] / saved["filename"], server.base / "input")
            continue
        [path] = server.saved(server.run(prompt))
        if name in IMAGE_MODELS:
            assert Image.open(path).size == (SIZE, SIZE), name
            continue
        frames, rate = frames_of(path)
        count = LONG if name[0] in "34" else 1 + 4 * (FRAMES - 1) if name[0] == "2" else FRAMES
        fps = prompt[only(prompt, "TemporalUNetSVDConditioning")]["inputs"]["fps"]
        assert frames.shape == (count, SIZE, SIZE, 3), name
        assert rate == (4 * fps if name[0] == "2" else fps), name
        made = frames[::4] if name[0] == "2" else frames  # without training, the model between frames gives gray
        assert made.std(axis=(1, 2, 3)).min() > 5, f"{name}: a frame is flat"


def test_every_node_of_an_example_has_a_title():
    for name in NAMES:
        for each in json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")).values():
            assert each["_meta"]["title"], name
