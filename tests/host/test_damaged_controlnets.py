"""Load ControlNet on pickled files: whole ones, and what downloads leave of them. Each is one error that names the file."""

import os
import struct

import comfy.controlnet
import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from support.oracle import t2i_adapter

LOADER = "TemporalUNetControlNetLoader"
UNREADABLE = "cannot be read as a PyTorch file"
AGAIN = "Download it again, or take the .safetensors version."
NO_CONTROLNET = "holds no ControlNet that can be used here. Choose a ControlNet"


class Thing:
    """What a pickle may hold besides tensors."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controlnet")
    folder_paths.add_model_folder_path("controlnet", str(folder))
    return folder


@pytest.fixture(scope="module")
def adapter():
    """The tensors of a T2I-Adapter: the smallest that the host loads."""
    return t2i_adapter("sd1").t2i_model.state_dict()


def cut(path, share):
    os.truncate(path, int(path.stat().st_size * share))


def old(found, path):
    torch.save(found, path, _use_new_zipfile_serialization=False)  # as before PyTorch 1.6


def scribble(path, mark):
    """Other bytes in the middle of what follows `mark`."""
    content = bytearray(path.read_bytes())
    start = content.index(mark) + len(mark) + 60
    content[start : start + 40] = b"x" * 40
    path.write_bytes(content)


AT_ONCE = {  # content -> message, which the panel also shows before loading
    b"": ["it is empty. Download it again."],
    b"hello": [UNREADABLE, "(it begins as another kind of file)", AGAIN],
    b"<!DOCTYPE html>\n<html><body>Sign in</body></html>": ["it is a web page, not a model", "Download the .pth file itself."],
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64: ["it is a Git LFS pointer", "`git lfs pull`"],
    b"GGUF\3\0\0\0" + b"\1" * 99: ["it cannot be read as a GGUF file (its count of tensors is ", "Download it again."],
    b"PK\3\4" + bytes(999): [UNREADABLE, "(it is cut off)", AGAIN],
}


@pytest.mark.parametrize("content", AT_ONCE, ids=lambda content: repr(content[:8]))
def test_what_the_first_bytes_say_is_an_error_of_loader_and_panel(node, pack, folder, content):
    path = folder / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^bad.pth") as error:
        node(LOADER).execute("bad.pth")
    assert all(words in str(error.value) for words in AT_ONCE[content]), str(error.value)
    with pytest.raises(pack("unet").UNetFileError) as shown:
        pack("nodes.bridge.info.file_info").describe_controlnet_file(str(path))
    assert str(shown.value) == str(error.value)


DAMAGED = {  # name -> (what makes the file, message)
    "cut": (lambda found, path: (torch.save(found, path), cut(path, 0.5)), "it is cut off"),
    "old, cut in its tensors": (lambda found, path: (old(found, path), cut(path, 0.9)), "it is damaged or cut off"),
    "old, cut early": (lambda found, path: (old(found, path), os.truncate(path, 20)), "it is damaged or cut off"),
    "old, scribbled over": (lambda found, path: (old(found, path), scribble(path, b"collections")), "damaged"),
    "scribbled over": (lambda found, path: (torch.save(found, path), scribble(path, b"data.pkl")), "it is damaged or cut off"),
    "an object": (lambda found, path: torch.save({**found, "thing": Thing()}, path), "or holds Python objects besides tensors"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_pickle_is_an_error_without_pytorchs_advice(node, pack, folder, adapter, name):
    make, reason = DAMAGED[name]
    make(adapter, folder / "damaged.bin")
    with pytest.raises(pack("unet").UNetFileError, match=f"^damaged.bin {UNREADABLE}") as error:
        node(LOADER).execute("damaged.bin")
    assert reason in str(error.value) and str(error.value).endswith(AGAIN), str(error.value)
    assert "weights_only" not in str(error.value) and len(str(error.value)) < 200
    with pytest.raises(pack("unet").UNetFileError) as shown:
        pack("nodes.bridge.info.file_info").describe_controlnet_file(str(folder / "damaged.bin"))
    assert str(shown.value) == str(error.value)


OTHERS = {
    "list": [1, 2], "list of one": [torch.zeros(2)], "tensor": torch.zeros(3), "number": 5, "nothing": None, "empty": {},
    "other tensors": {"weight": torch.zeros(2)}, "numbered": {1: torch.zeros(2)}, "list of states": {"state_dict": [1, 2]},
    "piece of a ControlNet": {"zero_convs.0.0.weight": torch.zeros(4, 4, 1, 1)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_pickle_of_something_else_holds_no_controlnet(node, folder, name):
    torch.save(OTHERS[name], folder / "other.pt")
    with pytest.raises(ValueError, match=f"Load ControlNet .*: other.pt {NO_CONTROLNET}"):
        node(LOADER).execute("other.pt")


def test_an_empty_safetensors_file_holds_no_controlnet_whatever_its_ending(node, folder):
    (folder / "empty.pth").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ValueError, match=f"Load ControlNet .*: empty.pth {NO_CONTROLNET}"):
        node(LOADER).execute("empty.pth")


OF_OTHER_KINDS = {  # a tensor's name -> what such a file is, and where it belongs
    "lora_unet_down_blocks_0.lora_up.weight": ("a LoRA", "LoRA loader"),
    "first_stage_model.decoder.conv_in.weight": ("a VAE", "Load VAE"),
    "double_blocks.0.img_attn.qkv.weight": ("a transformer", "Load Diffusion Model"),
    "text_model.embeddings.position_embedding.weight": ("a text or image encoder", "CLIP"),
    "model.diffusion_model.input_blocks.0.0.weight": ("a UNet", "Load UNet"),
}


@pytest.mark.parametrize("save", ["safetensors", "pt"])
@pytest.mark.parametrize("name", OF_OTHER_KINDS)
def test_another_kind_of_model_is_named_before_and_while_loading(node, pack, folder, name, save):
    other = "model.diffusion_model.output_blocks.0.0.weight" if "input_blocks" in name else "a"
    tensors = {name: torch.zeros(2, 2), other: torch.zeros(1)}
    path = folder / f"other_kind.{save}"
    save_file(tensors, path) if save == "safetensors" else torch.save(tensors, path)
    with pytest.raises(pack("unet").UNetFileError) as shown:
        pack("nodes.bridge.info.file_info").describe_controlnet_file(str(path))
    kind, where = OF_OTHER_KINDS[name]
    assert all(words in str(shown.value) for words in (f"{path.name}: it holds {kind}", "not a ControlNet", where))
    with pytest.raises(ValueError) as error:
        node(LOADER).execute(path.name)
    assert str(error.value) == f"Load ControlNet (SVD and all): {shown.value}"


@pytest.mark.parametrize("save", [torch.save, old])
def test_a_whole_pickle_is_loaded_as_the_host_loads_it(node, pack, folder, adapter, save):
    save(adapter, folder / "whole.pth")
    control, info = node(LOADER).execute("whole.pth").result
    expected = comfy.controlnet.load_controlnet(str(folder / "whole.pth")).t2i_model.state_dict()
    found = control.t2i_model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert "T2IAdapter" in info and "whole.pth" in info
    assert pack("nodes.bridge.info.file_info").describe_controlnet_file(str(folder / "whole.pth"))[0] == "T2IAdapter"


@pytest.mark.parametrize("save, name", [(torch.save, "renamed.safetensors"), (save_file, "renamed.pth"), (old, "renamed.sft")])
def test_what_the_host_loads_is_loaded_under_the_ending_of_another_kind(node, folder, adapter, save, name):
    tensors = {key: value.contiguous() for key, value in adapter.items()}
    save(tensors, folder / name)
    save_file(tensors, folder / "right.safetensors")
    control, info = node(LOADER).execute(name).result
    expected = comfy.controlnet.load_controlnet(str(folder / "right.safetensors"))
    found, wanted = control.t2i_model.state_dict(), expected.t2i_model.state_dict()
    assert type(control) is type(expected) and all(torch.equal(found[key], wanted[key]) for key in wanted) and name in info


def test_an_error_of_the_host_that_is_not_due_to_the_file_stays_as_it_is(node, folder, adapter):
    """Sizes that do not fit together are reported by the host, with the tensors' names."""
    tensors = {**adapter, "conv_in.bias": torch.zeros(3)}
    torch.save(tensors, folder / "misshaped.pth")
    with pytest.raises(RuntimeError, match="size mismatch for conv_in.bias"):
        node(LOADER).execute("misshaped.pth")
