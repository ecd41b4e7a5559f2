"""The names that loaders offer and take, and what is said of a file before the run."""

import asyncio
import json
import shutil
from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from support.families import in_diffusers_layout, random_weights, write_unet
from support.oracle import SMALL

SDCPP = Path(__file__).resolve().parents[1] / "support" / "sdcpp"


@pytest.fixture
def write():
    """Writes a small UNet to `models/<name>` and returns its first bias; nothing of it stays."""
    models, made = Path(folder_paths.models_dir), []

    def write(name, seed):
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(path)
        folder_paths.filename_list_cache.clear()
        return write_unet(path, SMALL["sd1_tiny"], seed=seed, metadata={"temporal_unet.head_channels": "32"})["time_embed.0.bias"]

    yield write
    for path in made:
        path.unlink()
        if path.parent.parent != models:
            shutil.rmtree(path.parent)
    folder_paths.filename_list_cache.clear()


def first_bias(node, name):
    return node("TemporalUNetLoader").execute(unet_name=name).args[0].model.state_dict()["diffusion_model.time_embed.0.bias"]


def offered(node, *files):
    """The names of these files that Load UNet offers; other tests leave files of their own."""
    options = node("TemporalUNetLoader").define_schema().inputs[0].options
    return sorted(name for name in options if name.replace("\\", "/").rpartition("/")[2] in files)


def test_files_of_folders_with_the_names_of_folders_are_offered_once_and_load(node, write):
    files = {
        "diffusion_models/checkpoints/a.safetensors": write("diffusion_models/checkpoints/a.safetensors", 1),
        "diffusion_models/diffusion_models/b.safetensors": write("diffusion_models/diffusion_models/b.safetensors", 2),
        "c.safetensors": write("diffusion_models/c.safetensors", 3),
        "checkpoints/a.safetensors": write("checkpoints/a.safetensors", 4),
    }
    assert offered(node, "a.safetensors", "b.safetensors", "c.safetensors") == sorted(files)
    for name, bias in files.items():
        assert torch.equal(first_bias(node, name), bias)


def test_a_name_of_version_0_1_means_the_same_file(node, write):
    alone = write("diffusion_models/checkpoints/a.safetensors", 1)
    other = write("diffusion_models/diffusion_models/b.safetensors", 2)
    assert torch.equal(first_bias(node, "checkpoints/a.safetensors"), alone)
    assert torch.equal(first_bias(node, "diffusion_models/b.safetensors"), other)
    full = write("checkpoints/a.safetensors", 4)
    assert torch.equal(first_bias(node, "checkpoints/a.safetensors"), full)


def test_a_name_with_a_back_slash_is_the_hosts(node, write):
    """As on Windows, where the host lists folders so."""
    files = {
        "checkpoints\\a.safetensors": write("diffusion_models/checkpoints\\a.safetensors", 1),
        "checkpoints/a.safetensors": write("checkpoints/a.safetensors", 2),
        "checkpoints/sub\\b.safetensors": write("checkpoints/sub\\b.safetensors", 3),
    }
    assert offered(node, "a.safetensors", "b.safetensors", "c.safetensors") == sorted(files)
    for name, bias in files.items():
        assert torch.equal(first_bias(node, name), bias)


@pytest.fixture
def parts():
    """Models in parts, in diffusers' folders and as GGUF, in the host's folders; `parts(bias)` writes them, nothing stays."""
    models = Path(folder_paths.models_dir)
    roots = [models / "diffusion_models" / "many", models / "checkpoints" / "many", models / "diffusers" / "pipe"]

    def write(weights):
        unet = roots[2] / "unet"
        for folder in (roots[0], roots[1], unet):
            folder.mkdir(parents=True)
        names = list(weights)
        for root, stem in ((roots[0], "net"), (roots[1], "bare")):
            files = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
            for file, half in zip(files, (names[::2], names[1::2]), strict=True):
                save_file({name: weights[name] for name in half}, root / file)
            if stem == "net":
                places = {name: files[index % 2] for index, name in enumerate(names)}
                (root / "net.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        (unet / "config.json").write_text("{}")
        (roots[0] / "net.gguf").write_bytes((SDCPP / "sd1_mixed.gguf").read_bytes())
        shutil.copy(roots[0] / "net-00001-of-00002.safetensors", roots[2] / "text.safetensors")
        save_file(in_diffusers_layout(SMALL["sd1_tiny"], weights), unet / "diffusion_pytorch_model.safetensors")
        folder_paths.filename_list_cache.clear()

    yield write
    for root in roots:
        shutil.rmtree(root, ignore_errors=True)
    folder_paths.filename_list_cache.clear()


def test_parts_and_folders_are_offered_once_and_load_and_so_does_a_part_of_an_old_workflow(node, parts):
    weights = random_weights(SMALL["sd1_tiny"])
    parts(weights)
    unets = node("TemporalUNetLoader").define_schema().inputs[0].options
    added = {name for name in unets if "many" in name or "pipe" in name}
    assert added == {
        "many/net.gguf", "many/net.safetensors.index.json", "checkpoints/many/bare-00001-of-00002.safetensors",
        "diffusers/pipe/",
    }
    checkpoints = node("TemporalUNetCheckpointLoader").define_schema().inputs[0].options
    assert [name for name in checkpoints if "many" in name] == ["many/bare-00001-of-00002.safetensors"]
    for name in sorted(added - {"many/net.gguf"}):
        assert torch.equal(first_bias(node, name), weights["time_embed.0.bias"]), name
    part = "many/net-00002-of-00002.safetensors"  # as workflows of before may name it
    assert asyncio.run(node("TemporalUNetLoader").validate_inputs(part)) is True
    assert torch.equal(first_bias(node, part), weights["time_embed.0.bias"])


def test_the_controlnet_of_the_miniature_is_offered_and_loads(node):
    name = "miniature_svd_controlnet_path.safetensors"
    assert node("TemporalUNetControlNetLoader").define_schema().inputs[0].options.count(name) == 1  # other tests leave files
    control, info = node("TemporalUNetControlNetLoader").execute(name).args
    assert info.startswith("SVD ControlNet\n") and name in info
    assert asyncio.run(node("TemporalUNetControlNetLoader").validate_inputs(name)) is True


def test_names_of_version_0_1_pass_before_the_run(node, write):
    write("diffusion_models/checkpoints/a.safetensors", 1)
    for name in ("diffusion_models/checkpoints/a.safetensors", "checkpoints/a.safetensors"):
        assert asyncio.run(node("TemporalUNetLoader").validate_inputs(name)) is True


FILES = {  # loader -> its folder
    "TemporalUNetLoader": "diffusion_models", "TemporalUNetCheckpointLoader": "checkpoints",
    "TemporalUNetControlNetLoader": "controlnet",
}


@pytest.mark.parametrize("loader", FILES)
@pytest.mark.parametrize("content", ["<html></html>", "", None], ids=["web page", "empty", "LoRA"])
def test_what_a_run_would_end_with_is_said_before_it(node, loader, content):
    path = Path(folder_paths.models_dir) / FILES[loader] / "bad.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    folder_paths.filename_list_cache.clear()
    if content is None:
        save_file({"lora_unet_a.lora_up.weight": torch.zeros(4, 4)}, path)
    else:
        path.write_text(content)
    try:
        said = asyncio.run(node(loader).validate_inputs(path.name))
        with pytest.raises(ValueError) as error:
            node(loader).execute(path.name)
    finally:
        path.unlink()
        folder_paths.filename_list_cache.clear()
    assert said == str(error.value).removeprefix("Load ControlNet (SVD and all): ") and path.name in said


def test_a_file_that_changes_is_looked_at_again(node, write):
    validate = node("TemporalUNetLoader").validate_inputs
    write("diffusion_models/c.safetensors", 1)
    path = Path(folder_paths.models_dir) / "diffusion_models" / "c.safetensors"
    assert asyncio.run(validate(path.name)) is True
    path.write_bytes(path.read_bytes()[:-4096])
    assert "cut off" in asyncio.run(validate(path.name))


@pytest.mark.parametrize("loader", FILES)
@pytest.mark.parametrize("name", ["no_such.safetensors", "../vae/a.safetensors", 5, {"a": 1}, "a" * 5000])
def test_a_name_that_is_not_offered_is_refused(node, loader, name):
    message = asyncio.run(node(loader).validate_inputs(name))
    assert message.startswith("Value not in list: ") and "not in [" in message and len(message) < 1000
    assert f"put the file into models/{FILES[loader]} " in message


@pytest.mark.parametrize("loader", FILES)
@pytest.mark.parametrize("name", [None, 5])
def test_a_name_that_is_no_text_is_named_by_the_run(node, loader, name):
    """The host gives `validate_inputs` None for null in a prompt, too."""
    with pytest.raises(ValueError, match=f"^{name} is not the name of a file in models/{FILES[loader]}"):
        node(loader).execute(name)


@pytest.mark.parametrize("loader", FILES)
def test_a_linked_name_is_left_to_the_run(node, loader):
    """The host gives `validate_inputs` no values of links."""
    assert asyncio.run(node(loader).validate_inputs()) is True
