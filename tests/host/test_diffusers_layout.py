"""Files in diffusers' layout: the names that the host has for them, and the MODEL that comes of them."""

import asyncio
import json
import shutil
from pathlib import Path

import comfy.utils
import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from support.families import TINY, in_diffusers_layout, random_weights
from support.oracle import ROWS, SMALL, host_model
from unet.weights.diffusers_names import diffusers_layers


@pytest.mark.parametrize("name", [name for name, config in TINY.items() if not config.temporal])
def test_layers_of_images_have_the_names_that_the_host_has(pack, name):
    host_config = pack("nodes.bridge.model.unet_loader").host_config(TINY[name])
    ours = {theirs: own for own, theirs in diffusers_layers(TINY[name]).items()}
    host = {theirs.rpartition(".")[0]: own.rpartition(".")[0] for theirs, own in comfy.utils.unet_to_diffusers(host_config).items()}
    assert {theirs: host[theirs] for theirs in ours if theirs != "class_embedding"} == {
        theirs: own for theirs, own in ours.items() if theirs != "class_embedding"  # the host has no x4 upscaler there
    }


SD2 = SMALL["sd2"]
SPREAD = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture
def folder():
    """Writes a folder of diffusers' layout to `models/<name>`; nothing of it stays."""
    models, made = Path(folder_paths.models_dir), []

    def write(name, config, weights, prediction=None, **scheduler):
        path = models / name
        made.append(path)
        (path / "unet").mkdir(parents=True)
        save_file(in_diffusers_layout(config, weights), path / "unet" / "diffusion_pytorch_model.safetensors")
        widths = config.level_channels
        (path / "unet" / "config.json").write_text(json.dumps({
            "_class_name": "UNet2DConditionModel", "block_out_channels": widths, "in_channels": config.in_channels,
            "cross_attention_dim": config.context_dim, "attention_head_dim": [config.heads(width)[0] for width in widths],
        }))
        if prediction is not None:
            (path / "scheduler").mkdir()
            scheduler = {"_class_name": "DDIMScheduler", "prediction_type": prediction, **scheduler}
            (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        folder_paths.filename_list_cache.clear()
        return path

    yield write
    for path in made:
        shutil.rmtree(path)
    folder_paths.filename_list_cache.clear()


@pytest.mark.parametrize(
    "family, prediction", [
        ("sd2", "v_prediction"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("sd2", "epsilon"), ("sdxl", "v_prediction"), ("sdxl", None))),
    ]
)
def test_a_folder_loads_as_the_hosts_own_model_of_its_prediction(node, folder, family, prediction):
    config = SMALL[family]
    weights = random_weights(config)
    folder("diffusers/temporal_test", config, weights, prediction, rescale_betas_zero_snr=family == "sdxl")
    assert "diffusers/temporal_test/" in node("TemporalUNetLoader").define_schema().inputs[0].options
    model, info = node("TemporalUNetLoader").execute("diffusers/temporal_test/", "fp32").args
    assert "temporal_test/unet/diffusion_pytorch_model.safetensors" in info
    beside = {}
    if family == "sd2":  # from whose spread the host detects it
        weights[SPREAD] = torch.tensor([0.2 if prediction == "v_prediction" else 0.0, -0.2]).repeat(len(weights[SPREAD]) // 2)
        weights[SPREAD] *= prediction == "v_prediction"
    elif prediction == "v_prediction":
        beside = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    host = host_model(weights, ROWS[family], beside, head_channels=config.head_channels)
    assert model.model.model_type == host.model.model_type
    assert torch.equal(model.model.model_sampling.sigmas, host.model.model_sampling.sigmas)
    state = model.model.diffusion_model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in random_weights(config).items())


def test_folders_sets_and_gguf_are_listed_once_and_nowhere_else(node, pack, folder):
    import nodes as host_nodes

    path = folder("diffusion_models/temporal_test", SD2, random_weights(SD2))
    for name in ("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors", "b-00001-of-00002.safetensors",
                 "b-00002-of-00002.safetensors", "b.safetensors.index.json", "c.gguf", "d-00002-of-00002.safetensors"):
        (path / name).write_bytes(b"")
    folder_paths.filename_list_cache.clear()
    offered = {name for name in node("TemporalUNetLoader").define_schema().inputs[0].options if name.startswith("temporal_test")}
    assert {name.removeprefix("temporal_test/") for name in offered} == {
        "", "a-00001-of-00002.safetensors", "b.safetensors.index.json", "c.gguf", "d-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
    }
    valid = pack("nodes.bridge.info.model_files").valid_unet_names()
    assert "temporal_test/b-00002-of-00002.safetensors" in valid
    hosts = host_nodes.UNETLoader.INPUT_TYPES()["required"]["unet_name"][0]
    assert not [name for name in hosts if name.endswith((".gguf", ".json", "/"))]
    (path / "e.gguf").write_bytes(b"")  # a new file is seen at once
    assert "temporal_test/e.gguf" in node("TemporalUNetLoader").define_schema().inputs[0].options


@pytest.mark.parametrize(
    "name", ["diffusers/../diffusion_models/temporal_test/", "../diffusion_models/temporal_test/", "diffusers/none/"]
)
def test_a_folder_that_is_not_listed_is_refused(node, folder, name):
    folder("diffusion_models/temporal_test", SD2, random_weights(SD2))
    assert asyncio.run(node("TemporalUNetLoader").validate_inputs(name)).startswith("Value not in list")
