"""The names that Load UNet offers: every file once, and names of version 0.1 mean the same file."""

import shutil
from pathlib import Path

import folder_paths
import pytest
import torch

from support.families import write_unet
from support.oracle import SMALL


@pytest.fixture
def write():
    """Writes a small UNet to `models/<name>` and returns its first bias; nothing of it stays."""
    models, made = Path(folder_paths.models_dir), []

    def write(name, seed):
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(path)
        folder_paths.filename_list_cache.clear()
        return write_unet(path, SMALL["sd1"], seed=seed, metadata={"temporal_unet.head_channels": "32"})["time_embed.0.bias"]

    yield write
    for path in made:
        path.unlink()
        if path.parent.parent != models:
            shutil.rmtree(path.parent)
    folder_paths.filename_list_cache.clear()


def first_bias(node, name):
    return node("TemporalUNetLoader").execute(unet_name=name).args[0].model.state_dict()["diffusion_model.time_embed.0.bias"]


def test_files_of_folders_with_the_names_of_folders_are_offered_once_and_load(node, write):
    files = {
        "diffusion_models/checkpoints/a.safetensors": write("diffusion_models/checkpoints/a.safetensors", 1),
        "diffusion_models/diffusion_models/b.safetensors": write("diffusion_models/diffusion_models/b.safetensors", 2),
        "c.safetensors": write("diffusion_models/c.safetensors", 3),
        "checkpoints/a.safetensors": write("checkpoints/a.safetensors", 4),
    }
    assert sorted(node("TemporalUNetLoader").define_schema().inputs[0].options) == sorted(files)
    for name, bias in files.items():
        assert torch.equal(first_bias(node, name), bias)


def test_a_name_of_version_0_1_means_the_same_file(node, write):
    alone = write("diffusion_models/checkpoints/a.safetensors", 1)
    other = write("diffusion_models/diffusion_models/b.safetensors", 2)
    assert torch.equal(first_bias(node, "checkpoints/a.safetensors"), alone)
    assert torch.equal(first_bias(node, "diffusion_models/b.safetensors"), other)
    full = write("checkpoints/a.safetensors", 4)
    assert torch.equal(first_bias(node, "checkpoints/a.safetensors"), full)
