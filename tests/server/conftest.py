"""A real ComfyUI server for the session, with untrained models, a photo, and three small nodes that make what no core node does."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import dev
from support.client import LARGE, Comfy
from support.prompts import SIZE, svd

PROBES = '''
import torch


class ProbeImage:
    """A gray image of which one pixel is NaN."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        image = torch.full((1, 64, 64, 3), 0.5)
        image[0, 5, 5, 0] = float("nan")
        return (image,)


class ProbeLatent:
    """An empty latent with no frames, as a faulty node may hand one on."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return ({"samples": torch.zeros(0, 4, 8, 8)},)


class ProbeConditioning:
    """A text conditioning of zeros."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"default": 768, "min": 1, "max": 8192})}}

    def make(self, width):
        return ([[torch.zeros(1, 77, width), {"pooled_output": torch.zeros(1, 1280)}]],)


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (ProbeImage, ProbeLatent, ProbeConditioning)}
'''


def write_photo(path: Path) -> None:
    """A gradient with a bright square: edges for Canny, color everywhere."""
    y, x = np.mgrid[0:96, 0:128]
    picture = np.stack([x * 2, y * 2, 255 - x], -1).astype(np.uint8)
    picture[30:60, 40:90] = 255
    Image.fromarray(picture).save(path)


def write_bad_files(folder: Path, good: Path) -> None:
    """What people choose as a UNet by mistake, or what a download left of it."""
    whole = (good / "diffusion_models" / "untrained_svd.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "web_page.safetensors").write_text("<!DOCTYPE html>\n<html><body>Sign in to download</body></html>\n" + " " * 500)
    save_file({f"lora_unet_input_blocks_1_1_proj_in.lora_{end}.weight": torch.zeros(4, 4) for end in ("up", "down")},
              folder / "lora.safetensors")
    dev.link_file(good / "vae" / "untrained_vae.safetensors", folder / "vae.safetensors")
    weights = load_file(good / "diffusion_models" / "untrained_sdxl.safetensors")
    prefix = "model.diffusion_model."
    most = {name: value for name, value in weights.items() if name != prefix + "time_embed.2.bias"}
    save_file(most, folder / "missing_key.safetensors")
    save_file({**weights, prefix + "out.0.weight": torch.zeros(7)}, folder / "misshaped_key.safetensors")


def write_bad_controlnets(folder: Path) -> None:
    """What people choose as a ControlNet by mistake, under the endings of pickled files, as most are published."""
    (folder / "web_page.pth").write_text("<!DOCTYPE html>\n<html><body>Sign in to download</body></html>\n")
    torch.save({"weight": torch.zeros(9999)}, folder / "cut_off.pth")
    os.truncate(folder / "cut_off.pth", 20000)
    torch.save({"weight": torch.zeros(9999)}, folder / "damaged.bin", _use_new_zipfile_serialization=False)
    os.truncate(folder / "damaged.bin", 20000)
    torch.save([1, 2], folder / "list.pt")


def write_loras(folder: Path) -> None:
    """One for a layer over time of SVD, and what people choose as a LoRA by mistake."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"unet.mid_block.resnets.0.time_mixer.mix_factor.diff": torch.full((1,), 5.0)}, folder / "over_time.safetensors")
    save_file({"lora_unet_double_blocks_0_img_attn_qkv.diff": torch.ones(2)}, folder / "flux.safetensors")
    torch.save([torch.ones(2, 2)] * 2, folder / "list.pt")


def start(host: dev.Host, base: Path, models: list[Path]) -> Comfy:
    """A server, to be entered with `with`, on a base directory with these models, the photo and the probes."""
    for folder in models:
        dev.link_models(folder, base)
    for folder in ("input", "custom_nodes/probes"):
        (base / folder).mkdir(parents=True)
    write_photo(base / "input" / "photo.png")
    (base / "custom_nodes" / "probes" / "__init__.py").write_text(PROBES)
    return Comfy(host.folder, host.python, base, ["--preview-method", "latent2rgb"])


@pytest.fixture(scope="session")
def host():
    return dev.Host("under test", Path(os.environ["TEMPORAL_UNET_HOST"]), Path(sys.executable))


@pytest.fixture(scope="session")
def server(host, tmp_path_factory):
    """The server that the tests share."""
    base, small = tmp_path_factory.mktemp("comfyui"), dev.untrained_models(host)
    # As a checkpoint without an image encoder.
    name = "untrained_sd15.safetensors"
    dev.link_file(small / "diffusion_models" / name, base / "models" / "checkpoints" / name)
    running = start(host, base, [small, dev.untrained_models(host, *LARGE)])
    write_bad_files(base / "models" / "diffusion_models", small)
    write_bad_controlnets(base / "models" / "controlnet")
    write_loras(base / "models" / "loras")
    shutil.copy(base / "models" / "diffusion_models" / "web_page.safetensors",
                base / "models" / "checkpoints" / "web_page_checkpoint.safetensors")
    with running:
        yield running


@pytest.fixture(scope="module")
def fresh_server(host, tmp_path_factory):
    """A server that has run nothing yet: what other tests left to be freed does not disturb a measure."""
    with start(host, tmp_path_factory.mktemp("comfyui"), [dev.untrained_models(host)]) as running:
        yield running


@pytest.fixture
def alive(server):
    """After a test that does harm: a good prompt still gives its frames."""
    yield
    assert server.pictures(server.run(svd(frames=2, steps=1))).shape == (2, SIZE, SIZE, 3)


@pytest.fixture(scope="session")
def node_info(server):
    """What /object_info says of every node, by id."""
    return server.get("/object_info")


def pytest_configure(config):
    if not os.environ.get("TEMPORAL_UNET_HOST"):
        raise pytest.UsageError("TEMPORAL_UNET_HOST must name a ComfyUI checkout; `python dev.py test` sets it.")
