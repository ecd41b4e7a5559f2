"""Load Checkpoint: MODEL as from Load UNet, the other parts as from the host's loaders, memory once, and what a file lacks."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import comfy.model_detection
import comfy.sd
import folder_paths
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from safetensors import safe_open
from safetensors.torch import save_file

import dev
from support.children import run_module
from support.families import PREFIX, TINY, write_unet
from support.oracle import SMALL
from support.quantized import write_quantized
from tools.untrained import CLIP_L, SD15, VAE_SEED, clip_weights, vae_weights
from unet import FAMILIES, UNetModel
from unet.weights.checkpoint import Checkpoint
from unet.weights.detect import detect

ROWS = {family.name: family for family in FAMILIES}
REAL_WIDTHS = {"x4_upscaler": 256, "sdxl_refiner": 384}
MINIATURE = "miniature_svd.safetensors"


@pytest.fixture
def checkpoints():
    """The host's folder of checkpoints, left as it was found."""
    folder = Path(folder_paths.get_folder_paths("checkpoints")[0])
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.rglob("*"))
    yield folder
    for path in sorted(set(folder.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def load(node):
    """The outputs of the node by name."""
    def load(name, **inputs):
        folder_paths.filename_list_cache.clear()
        made = node("TemporalUNetCheckpointLoader").execute(ckpt_name=name, **inputs)
        return dict(zip(("model", "clip", "vae", "clip_vision", "info"), made.args, strict=True))

    return load


@pytest.fixture(scope="module")
def sd1_file(tmp_path_factory):
    """A checkpoint of Stable Diffusion 1: a UNet of two levels, the real text encoder's size, a tiny VAE."""
    path = tmp_path_factory.mktemp("sd1") / "sd1.safetensors"
    beside = {f"cond_stage_model.transformer.{name}": value for name, value in clip_weights(**CLIP_L, seed=1).items()
              if name != "text_projection.weight"}
    beside |= {f"first_stage_model.{name}": value for name, value in vae_weights(VAE_SEED).items()}
    write_unet(path, SD15, dtype=torch.float16, beside=beside)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def svd_file():
    """The file of the server's tests, in the real layout with the real image encoder."""
    host = dev.Host("under test", Path(os.environ["TEMPORAL_UNET_HOST"]), Path(sys.executable))
    return dev.untrained_models(host, "--svd-checkpoint") / "checkpoints" / "untrained_svd_checkpoint.safetensors"


def latent(frames=2):
    return torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_text_encoder_and_vae_equal_the_hosts_loader(load, checkpoints, sd1_file):
    os.symlink(sd1_file, checkpoints / "sd1.safetensors")
    ours = load("sd1.safetensors")
    _, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(sd1_file), output_model=False)
    for text in ("a small boat", ""):
        encoded = [each.encode_from_tokens(each.tokenize(text), return_pooled=True) for each in (clip, ours["clip"])]
        assert all(torch.equal(*pair) for pair in zip(*encoded, strict=True))
    assert torch.equal(ours["vae"].decode(latent()), vae.decode(latent()))
    assert ours["clip_vision"].message.startswith("Load Checkpoint (Temporal UNet): sd1.safetensors holds no image encoder")


@pytest.mark.slow
@pytest.mark.one_host
def test_a_checkpoint_under_the_ending_of_a_pickled_one_brings_the_same_parts(load, checkpoints, sd1_file):
    os.symlink(sd1_file, checkpoints / "sd1.ckpt")
    os.symlink(sd1_file, checkpoints / "sd1.safetensors")
    renamed, right = load("sd1.ckpt"), load("sd1.safetensors")
    assert torch.equal(renamed["vae"].decode(latent()), right["vae"].decode(latent()))
    assert torch.equal(*(each["clip"].encode_from_tokens(each["clip"].tokenize("a boat")) for each in (renamed, right)))


@pytest.mark.slow
def test_a_lora_with_text_encoder_acts_as_on_the_hosts_loader(load, checkpoints, sd1_file):
    os.symlink(sd1_file, checkpoints / "sd1.safetensors")
    key = "text_model_encoder_layers_0_mlp_fc1"
    generator = torch.Generator().manual_seed(3)
    lora = {f"lora_te_{key}.lora_up.weight": torch.randn(3072, 4, generator=generator),
            f"lora_te_{key}.lora_down.weight": torch.randn(4, 768, generator=generator) / 100,
            "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": torch.randn(320, 4, 1, 1, generator=generator),
            "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": torch.randn(4, 320, 1, 1, generator=generator)}
    ours, theirs = load("sd1.safetensors"), comfy.sd.load_checkpoint_guess_config(str(sd1_file), output_model=False)
    results = []
    for clip in (ours["clip"], theirs[1]):
        model, patched = comfy.sd.load_lora_for_models(ours["model"], clip, lora, 1.0, 1.0)
        assert len(model.patches) == 1 and len(patched.patcher.patches) == 1
        results.append(patched.encode_from_tokens(patched.tokenize("a boat")))
    assert torch.equal(*results)
    assert not torch.equal(results[0], theirs[1].encode_from_tokens(theirs[1].tokenize("a boat")))


@pytest.mark.slow
@pytest.mark.one_host
def test_image_encoder_and_vae_of_a_video_checkpoint_equal_the_hosts_loader(load, checkpoints, svd_file):
    os.symlink(svd_file, checkpoints / "svd.safetensors")
    ours = load("svd.safetensors")
    _, _, vae, vision = comfy.sd.load_checkpoint_guess_config(
        str(svd_file), output_model=False, output_clip=False, output_clipvision=True)
    assert torch.equal(ours["vae"].decode(latent()), vae.decode(latent()))
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours["clip_vision"].encode_image(image)["image_embeds"], vision.encode_image(image)["image_embeds"])
    assert "takes none: connect SVD Image to Video" in ours["clip"].message


@pytest.mark.slow
@pytest.mark.one_host
def test_memory_holds_every_weight_once(sd1_file, tmp_path):
    """No more than the host's loader of checkpoints, and never the UNet twice."""
    peaks = {}
    for kind in ("ours", "host"):
        run_module("support.checkpoint_worker", kind, sd1_file, tmp_path / kind)
        peaks[kind] = json.loads((tmp_path / kind).read_text())["peak"]
    with safe_open(sd1_file, framework="pt") as file:
        sizes = {name: torch.Size(file.get_slice(name).get_shape()).numel() * 4 / 2**20 for name in file.keys()}
    unet = sum(size for name, size in sizes.items() if name.startswith(PREFIX))
    print("peaks:", peaks, "MiB; UNet", unet, "and the other parts", sum(sizes.values()) - unet, "MiB in fp32")
    assert unet > 100
    assert peaks["ours"] <= peaks["host"] + 32
    assert peaks["ours"] <= sum(sizes.values()) + 32


@pytest.mark.parametrize("name", [
    name if name in ("svd", "sd1_tiny", "sdxl") else pytest.param(name, marks=pytest.mark.slow) for name in TINY
])
def test_our_answer_whether_the_host_knows_a_unet_is_the_hosts(pack, name):
    """In the real width and in a small one."""
    parts = pack("nodes.bridge.model.checkpoint_parts")
    real = replace(TINY["sdxl"], in_channels=TINY[name].in_channels) if name in ("sdxl_ip2p", "sdxl_inpaint") else TINY[name]
    for config in (TINY[name], replace(real, model_channels=REAL_WIDTHS.get(name, 320))):
        state = {PREFIX + key: value for key, value in UNetModel(config, device="meta").state_dict().items()}
        if ROWS[name].marker:
            state[ROWS[name].marker] = torch.empty(1, device="meta")
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        found, family, names = detect(shapes)
        checkpoint = Checkpoint(
            path=Path("a"), stamps={}, shapes=shapes, dtypes={}, names=names, metadata={}, config=found, family=family)
        theirs = comfy.model_detection.model_config_from_unet(state, PREFIX)
        assert parts.host_knows(checkpoint) == (theirs is not None)


def test_the_bundled_miniature_is_offered_and_loads_with_its_vae(load, caplog, node, checkpoints):
    folder_paths.filename_list_cache.clear()
    options = node("TemporalUNetCheckpointLoader").define_schema().inputs[0].options
    assert options[-1] == MINIATURE and not list(checkpoints.iterdir())
    with caplog.at_level("INFO"):
        made = load(MINIATURE)
    assert made["info"].startswith("Stable Video Diffusion\n")
    assert made["vae"].decode(latent()).shape == (2, 64, 64, 3)
    assert isinstance(made["clip_vision"], ExecutionBlocker) and "Load CLIP Vision" in made["clip_vision"].message
    assert made["clip_vision"].message in caplog.text  # whoever runs it over HTTP alone sees the log, not the editor's message


def test_a_file_of_the_users_own_stands_before_the_bundled_one(load, node, checkpoints):
    write_unet(checkpoints / MINIATURE, SMALL["sd1"], metadata={"temporal_unet.head_channels": "32"})
    assert load(MINIATURE)["info"].startswith("Stable Diffusion 1\n")
    assert node("TemporalUNetCheckpointLoader").define_schema().inputs[0].options == [MINIATURE]


@pytest.mark.parametrize("name", ["sd1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("svd", "sdxl"))])
def test_a_small_member_brings_the_vae_next_to_it(load, checkpoints, name):
    """The host's own loader refuses its width."""
    vae = vae_weights(VAE_SEED)
    write_unet(checkpoints / "small.safetensors", SMALL[name], beside={f"first_stage_model.{key}": v for key, v in vae.items()},
               metadata={"temporal_unet.head_channels": "32"})
    made = load("small.safetensors", weight_dtype="fp16")
    assert torch.equal(made["vae"].decode(latent()), comfy.sd.VAE(sd=dict(vae)).decode(latent()))
    assert made["model"].model.get_dtype() == torch.float16
    again = made["vae"].patcher.cached_patcher_init
    assert again[0](*again[1], disable_dynamic=True).model.state_dict().keys() == made["vae"].first_stage_model.state_dict().keys()


def test_a_quantized_unet_stays_quantized_next_to_its_vae(load, checkpoints):
    vae = vae_weights(VAE_SEED)
    beside = {f"first_stage_model.{key}": value for key, value in vae.items()}
    write_quantized(checkpoints / "q.safetensors", SMALL["sd1"], "old", beside=beside)
    made = load("q.safetensors")
    assert torch.equal(made["vae"].decode(latent()), comfy.sd.VAE(sd=dict(vae)).decode(latent()))
    assert "kept quantized: float8_e4m3fn" in made["info"] and made["info"].endswith("with VAE")


def test_a_unet_alone_says_for_each_other_part_what_to_connect(load, checkpoints):
    write_unet(checkpoints / "unet.safetensors", SMALL["sd1"], metadata={"temporal_unet.head_channels": "32"})
    made = load("unet.safetensors")
    expected = {
        "clip": "text encoder (CLIP) that can be used. Connect Load CLIP here", "vae": "VAE that can be used. Connect Load VAE",
        "clip_vision": "image encoder (CLIP Vision) that can be used. Delete the link from the output clip_vision",
    }
    for part, words in expected.items():
        assert made[part].message.startswith(f"Load Checkpoint (Temporal UNet): unet.safetensors holds no {words}")


@pytest.mark.parametrize("text, words", [("<!DOCTYPE html><html></html>", "it is a web page"), ("", "it is empty")])
def test_our_error_for_a_file_comes_before_anything_of_the_hosts(load, checkpoints, text, words):
    (checkpoints / "bad.safetensors").write_text(text)
    with pytest.raises(ValueError, match=f"^bad.safetensors: {words}"):
        load("bad.safetensors")


def test_a_part_that_is_not_whole_is_named_with_the_file(load, checkpoints):
    beside = {"first_stage_model.decoder.conv_in.weight": torch.zeros(3)}
    write_unet(checkpoints / "broken.safetensors", TINY["sd1"], beside=beside)
    said = r"^Load Checkpoint \(Temporal UNet\): broken.safetensors: the VAE in it cannot be loaded \(tuple index.*Load UNet\.$"
    with pytest.raises(ValueError, match=said):
        load("broken.safetensors")


def test_a_lora_is_named_as_one(load, checkpoints):
    save_file({"lora_unet_a.lora_up.weight": torch.zeros(4, 4)}, checkpoints / "bad.safetensors")
    with pytest.raises(ValueError, match="a LoRA, not a UNet"):
        load("bad.safetensors")
