"""What the openers are given: pipes, devices, links and odd names; and files that are overwritten later."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support import controlnexts, small
from support.families import PREFIX, random_weights
from unet import (
    FileStamp,
    UNetFileError,
    changed_in_place,
    find_controlnet,
    load_unet,
    open_checkpoint,
    open_controlnet,
    open_controlnext,
    read_residuals,
)
from unet.weights.lora_file import open_lora

OPENERS = (open_checkpoint, load_unet, read_residuals, find_controlnet, open_controlnet, open_controlnext, open_lora)
PICKLED = OPENERS[3:]  # what also opens pickled files
METADATA = {"temporal_unet.head_channels": str(small.SVD.head_channels)}


@pytest.fixture(autouse=True)
def in_time():
    """What waits for a pipe or a device is interrupted."""
    def late(*_):
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    yield
    signal.alarm(0)


def make(kind: str, path: Path) -> None:
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "broken link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "endless device":
            path.symlink_to("/dev/zero")
        case "link to a pipe":
            os.mkfifo(path.with_name("pipe"))
            path.symlink_to("pipe")
        case "socket":
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(os.path.relpath(path))  # a short path: sockets take no long one


KINDS = {
    "pipe": "it is a pipe, expected a file", "folder": "it is a folder, expected a file", "broken link": "no such file",
    "loop": "it cannot be opened .Too many levels", "endless device": "it is a device, expected a file",
    "link to a pipe": "it is a pipe", "socket": "it is a socket", "nothing": "no such file",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__)
def test_what_is_no_file_is_refused_with_a_message(kind, opener, tmp_path):
    for ending in (".safetensors", ".pth") if opener in PICKLED else (".safetensors",):
        path = tmp_path / ending.strip(".") / f"odd{ending}"
        path.parent.mkdir()
        make(kind, path)
        with pytest.raises(UNetFileError, match=f"^odd{ending}: {KINDS[kind]}"):
            opener(path)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"], ids=["too long", "NUL"])
@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__)
def test_a_name_that_no_file_has_is_refused_with_a_message(name, opener, tmp_path):
    for ending in (".safetensors", ".pth") if opener in PICKLED else (".safetensors",):
        with pytest.raises(UNetFileError, match="it cannot be opened") as error:
            opener(tmp_path / f"{name}{ending}")
        assert len(str(error.value)) <= 1000 and str(error.value).isprintable()


@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__)
def test_a_name_that_is_no_utf_8_is_refused_with_a_message(opener, tmp_path):
    """Neither safetensors nor PyTorch opens such a file; they take it for a damaged one."""
    for ending in (".safetensors", ".pth") if opener in PICKLED else (".safetensors",):
        path = tmp_path / os.fsdecode(b"\xff" + ending.encode())
        path.write_bytes(b"")
        with pytest.raises(UNetFileError, match="its name, or that of a folder that it is in, is not UTF-8. Rename it"):
            opener(path)


@pytest.mark.parametrize("name", ["\x1b[31mred\n", "模型 é", "%s{0}{suffix}%n"])
def test_a_file_is_named_as_it_is_with_control_characters_escaped(name, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UNetFileError) as error:
        open_checkpoint(tmp_path / f"{name}.safetensors")
    assert str(error.value).startswith(name.replace("\x1b", "\\x1b").replace("\n", "\\n") + ".safetensors: it holds no UNet")


def write_over(path: Path) -> None:
    """The same file with other bytes, of the same size."""
    with open(path, "r+b") as file:
        size = 8 + int.from_bytes(file.read(8), "little")
        file.seek(size)
        file.write(b"\x55" * (path.stat().st_size - size))


@pytest.fixture
def unet_file(tmp_path):
    path = tmp_path / "unet.safetensors"
    save_file({PREFIX + name: value for name, value in random_weights(small.SVD).items()}, path, METADATA)
    return path


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_loaded_unet_stays_as_it_was_when_its_file_is_overwritten(unet_file, dtype):
    expected = random_weights(small.SVD)
    model = load_unet(unet_file, dtype=dtype)
    write_over(unet_file)
    found = model.state_dict()
    assert all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in expected.items())


def test_mapped_weights_are_those_of_the_file(unet_file):
    checkpoint = open_checkpoint(unet_file)
    mapped, copied = checkpoint.state_dict(torch.float32, mapped=True), checkpoint.state_dict(torch.float32)
    write_over(unet_file)
    assert not torch.equal(mapped["out.2.weight"], random_weights(small.SVD)["out.2.weight"])
    assert torch.equal(copied["out.2.weight"], random_weights(small.SVD)["out.2.weight"])


@pytest.mark.parametrize("new", [True, False])
def test_a_pickled_net_stays_as_it_was_when_its_file_is_overwritten(new, tmp_path):
    path, expected = tmp_path / "net.pth", controlnexts.tensors(2)
    torch.save(expected, path, _use_new_zipfile_serialization=new)
    found = open_controlnext(path).state_dict()
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_that_was_overwritten_after_opening_is_not_read(unet_file, mapped):
    checkpoint = open_checkpoint(unet_file)
    os.truncate(unet_file, unet_file.stat().st_size - 100)
    with pytest.raises(UNetFileError, match="^unet.safetensors: it was changed after it was opened"):
        checkpoint.state_dict(mapped=mapped)


def grow(path):
    with open(path, "ab") as file:
        file.write(b"more")


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"another file")
    os.replace(other, path)


CHANGES = {  # what happens to the file -> is what was mapped from it in danger
    "nothing": (lambda path: None, False), "written over": (write_over, True), "cut": (lambda path: os.truncate(path, 100), True),
    "grown": (grow, True), "replaced": (replace, False), "gone": (os.unlink, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_place_is_noticed(change, unet_file):
    happen, expected = CHANGES[change]
    os.utime(unet_file, ns=(0, 10**18))  # long ago
    checkpoint, stamp = open_checkpoint(unet_file), FileStamp.of(os.stat(unet_file))
    happen(unet_file)
    assert checkpoint.stamps == {unet_file: stamp}
    assert checkpoint.changed_in_place() is expected and changed_in_place(unet_file, stamp) is expected


def test_residuals_stay_as_they_were_when_their_file_is_overwritten(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"controls.0": torch.ones(2, 4, 8, 8), "controls.1": torch.ones(2, 4, 8, 8).half()}, path)
    residuals = read_residuals(path)
    write_over(path)
    assert all(control.eq(1).all() for control in residuals.controls)


def test_a_lora_whose_file_was_cut_after_opening_is_not_read(tmp_path):
    """Reading what was mapped from it would end the process."""
    path = tmp_path / "a.safetensors"
    save_file({"lora_unet_a.lora_up.weight": torch.ones(64, 64), "lora_unet_a.lora_down.weight": torch.ones(64, 64)}, path)
    lora = open_lora(path)
    os.truncate(path, 500)
    with pytest.raises(UNetFileError, match="^a.safetensors: it was changed after it was opened"):
        lora.read("a")
