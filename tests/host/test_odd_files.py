"""What lies in the host's folders and is no file, or has an odd name: each loader reads it or ends in one error; none waits."""

import asyncio
import os
import signal
from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from support.controlnexts import tensors as controlnext
from support.families import write_unet
from support.loras import factors
from support.oracle import SMALL

HEADS = {"temporal_unet.head_channels": "32"}


def write_lora(path):
    up, down = factors((32, 32), 2, torch.Generator().manual_seed(0))
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    save_file({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, path)


LOADERS = {  # node -> (folder of models, what writes a sound file, more arguments of the node)
    "TemporalUNetLoader": ("diffusion_models", lambda path: write_unet(path, SMALL["sd1"], metadata=HEADS)),
    "TemporalUNetCheckpointLoader": ("checkpoints", lambda path: write_unet(path, SMALL["sd1"], metadata=HEADS)),
    "TemporalUNetControlNetLoader": ("controlnet", lambda path: save_file(controlnext(2, 32), path)),
    "TemporalUNetLoraLoader": ("loras", write_lora),
    "TemporalUNetLoadControlNetResiduals": (None, lambda path: save_file({"controls.0": torch.ones(1, 4, 8, 8)}, path)),
}


@pytest.fixture(autouse=True)
def in_time():
    """What waits for a pipe or a device is interrupted."""
    def late(*_):
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def place():
    """The path of a name in one of the host's folders (None: input), which is removed again."""
    made = []

    def place(folder, name):
        parent = Path(folder_paths.get_input_directory() if folder is None else folder_paths.get_folder_paths(folder)[0])
        parent.mkdir(parents=True, exist_ok=True)
        made.append(parent / name)
        folder_paths.filename_list_cache.clear()
        return made[-1]

    yield place
    for path in made:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def model(pack, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "a.safetensors"
    write_unet(path, SMALL["sd1"], metadata=HEADS)
    return pack("nodes.bridge.model.unet_loader").load_checkpoint(pack("unet").open_checkpoint(path), {})


def checked(node, name):
    """What the node says of the name before a run."""
    answer = node.validate_inputs(name)
    return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer


def run(node, name, model):
    return node.execute(model, name, 1.0) if "Lora" in node.GET_SCHEMA().node_id else node.execute(name)


KINDS = {
    "a pipe": os.mkfifo, "a folder": os.mkdir, "a loop": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"), "a link to nowhere": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_no_file_is_reported_before_the_run_and_ends_it(loader, kind, node, place, model):
    KINDS[kind](place(LOADERS[loader][0], "odd.safetensors"))
    loader = node(loader)
    loader.define_schema()  # its list is made of all that lies there
    said = checked(loader, "odd.safetensors")
    assert isinstance(said, str) and "odd.safetensors" in said and len(said) < 1100
    with pytest.raises((ValueError, OSError), match="odd.safetensors"):
        run(loader, "odd.safetensors", model)


NAMES = {
    "255 bytes": "n" * 243 + ".safetensors", "a line feed": "a\nb.safetensors", "signs": "模 é'\"`$(x){0}%s.safetensors",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_file_of_any_name_is_offered_and_loads_and_a_damaged_one_is_named(loader, name, node, place, model):
    folder, write = LOADERS[loader]
    name = NAMES[name]
    path = place(folder, name)
    write(path)
    loader = node(loader)
    options = next(each for each in loader.define_schema().inputs if hasattr(each, "options")).options
    assert name in options and checked(loader, name) is True
    found = run(loader, name, model).args
    assert all(text.encode() and text.replace("\n", "").isprintable() for text in found if isinstance(text, str))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="it is cut off|not a safetensors file") as error:
        run(loader, name, model)
    assert str(error.value).isprintable() and len(str(error.value)) < 1100


@pytest.mark.parametrize("loader", LOADERS)
def test_a_name_that_is_no_utf_8_is_offered_and_refused_with_a_message(loader, node, place, model):
    name = os.fsdecode(b"\xff\xfe.safetensors")
    path = place(LOADERS[loader][0], name)
    path.write_bytes(b"")
    loader = node(loader)
    assert name in next(each for each in loader.define_schema().inputs if hasattr(each, "options")).options
    with pytest.raises(ValueError, match=r"\\udcff\\udcfe.safetensors: its name, or .* is not UTF-8. Rename it.$"):
        run(loader, name, model)
