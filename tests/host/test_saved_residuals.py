"""Files of residuals by the names that users give: none outside the host's folders, none lost, and messages for what goes wrong."""

import math
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from support.oracle import run_node


@pytest.fixture
def input_folder(tmp_path):
    """The host's, empty but for what a test puts there; a good file stands next to it."""
    import folder_paths

    before, folder = folder_paths.get_input_directory(), tmp_path / "input"
    folder.mkdir()
    save_file({"controls.0": torch.zeros(1, 4, 2, 2)}, tmp_path / "outside.safetensors")
    folder_paths.set_input_directory(str(folder))
    yield folder
    folder_paths.set_input_directory(before)


LEADS_OUT = "leads out of the input folder"
NO_FILE = "is a folder, a device or a pipe, expected a file"
UNUSABLE = {  # how a name comes to mean no file of the folder -> (what is made there, the name, what the message says)
    "absolute": (None, "{outside}", LEADS_OUT),
    "up": (None, "../outside.safetensors", LEADS_OUT),
    "up, of another folder": (None, "../../outside.safetensors [output]", "leads out of the output folder"),
    "device": (None, "/dev/zero", LEADS_OUT),
    "process": (None, "/proc/self/environ", LEADS_OUT),
    "link to a file outside": (lambda path: path.symlink_to("../outside.safetensors"), "a.safetensors", LEADS_OUT),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "a.safetensors", LEADS_OUT),
    "link to the folder outside": (lambda path: path.symlink_to(".."), "a.safetensors/outside.safetensors", LEADS_OUT),
    "pipe": (lambda path: os.mkfifo(path), "a.safetensors", NO_FILE),
    "folder": (lambda path: path.mkdir(), "a.safetensors", NO_FILE),
    "the folder itself": (None, "", NO_FILE),
    "link to itself": (lambda path: path.symlink_to(path.name), "a.safetensors", "is not in the input folder"),
    "too long": (None, "n" * 5000, "is not in the input folder"),
    "several lines": (None, "a\nERROR b", r"'a\\nERROR b' is not in the input folder"),
    "NUL": (None, "a\0.safetensors", "is not a name that a file can have"),
    "half a character": (None, "\ud800.safetensors", "is not a name that a file can have"),
    "number": (None, 5, "residuals_name is 5, expected the name of a file"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_name_that_is_no_file_of_the_folder_is_refused_by_all_that_open_it(node, input_folder, case):
    make, name, words = UNUSABLE[case]
    if make is not None:
        make(input_folder / "a.safetensors")
    if case == "absolute":
        name = name.format(outside=input_folder.parent / "outside.safetensors")
    load = node("TemporalUNetLoadControlNetResiduals")
    message = load.validate_inputs(name)
    assert re.search(words, message) and "Load ControlNet" not in message and len(message) < 500 and message.isprintable()
    for opens in (load.fingerprint_inputs, load.execute):
        with pytest.raises(ValueError) as error:
            opens(name)
        assert str(error.value) == f"Load ControlNet Residuals: {message}"


def test_links_within_the_folder_are_followed(node, input_folder):
    (input_folder / "kept").mkdir()
    (input_folder.parent / "outside.safetensors").rename(input_folder / "kept" / "a.safetensors")
    (input_folder / "b.safetensors").symlink_to("kept/a.safetensors")
    (input_folder / "link").symlink_to("kept")
    load = node("TemporalUNetLoadControlNetResiduals")
    for name in ("b.safetensors", "link/a.safetensors", "kept/../b.safetensors", "b.safetensors [input]"):
        assert load.validate_inputs(name) is True
        assert run_node(load, name)[0].controls[0].shape == (1, 4, 2, 2)


def test_a_name_that_another_node_gives_is_looked_at_when_the_node_runs(node):
    """Until then the host gives None."""
    load = node("TemporalUNetLoadControlNetResiduals")
    assert load.validate_inputs(None) is True
    assert math.isnan(load.fingerprint_inputs(None))
    with pytest.raises(ValueError, match="^Load ControlNet Residuals: residuals_name is None, expected the name of a file"):
        load.execute(None)


def test_an_interrupt_ends_the_fingerprint_and_stays_for_the_host(node, input_folder):
    """An exception would be lost in ComfyUI 0.16, and end the worker of 0.30."""
    import comfy.model_management as management

    with (input_folder / "large.safetensors").open("wb") as file:
        file.truncate(2**35)  # a hole; all of it would take over ten seconds
    management.interrupt_current_processing()
    try:
        assert math.isnan(node("TemporalUNetLoadControlNetResiduals").fingerprint_inputs("large.safetensors"))
        assert management.processing_interrupted()
    finally:
        management.interrupt_current_processing(False)


@pytest.fixture
def output_folder(tmp_path):
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


@pytest.fixture
def save(node, pack):
    """Saves residuals, all of one value, under a prefix; the name that they got."""

    def save(prefix, value=0.0):
        hidden = node("TemporalUNetSaveControlNetResiduals").PREPARE_CLASS_CLONE({"hidden_inputs": {}})
        made = pack("unet").ControlResiduals((torch.full((1, 4, 16, 16), float(value)),))
        return hidden.execute(made, prefix).ui["residuals"][0]["filename"]

    return save


@pytest.mark.parametrize("prefix, words", [
    ("../a", "leads out of the output folder"), ("/tmp/a", "leads out of the output folder"),
    ("link/a", "leads out of the output folder"), ("sub/../../a", "leads out of the output folder"),
    ("%year%/../../a", "leads out of the output folder"), ("a\0b", "is not a name that a file can have"),
    ("\ud800", "is not a name that a file can have"),
])
def test_a_prefix_that_leads_out_of_the_output_folder_is_refused(save, output_folder, tmp_path_factory, prefix, words):
    outside = tmp_path_factory.mktemp("outside")
    (output_folder / "link").symlink_to(outside)
    with pytest.raises(ValueError) as error:
        save(prefix)
    message = str(error.value)
    assert re.fullmatch(f"Save ControlNet Residuals: filename_prefix '.+' {words}. Name a place in the output folder.", message)
    assert str(output_folder) not in message and message.isprintable()
    assert list(outside.iterdir()) == [] and [path.name for path in output_folder.iterdir()] == ["link"]


def no_space(folder):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def file_in_its_place(folder):
    (folder / "sub").write_text("x")
    return (folder / "sub").unlink


def read_only(folder):
    """/sys: even an administrator may not write there."""
    import folder_paths

    folder_paths.set_output_directory("/sys")
    return lambda: folder_paths.set_output_directory(str(folder))


@pytest.mark.skipif(sys.platform != "linux", reason="/sys, and a limit of the size of files")
@pytest.mark.parametrize("hinder, prefix, reason", [
    (no_space, "sub/a", "File too large"), (file_in_its_place, "sub/a", "Not a directory"),
    (read_only, "sub/a", "Permission denied|Operation not permitted|Read-only file system"),
    (lambda folder: lambda: None, "n" * 240, "File name too long"),
])
def test_what_cannot_be_saved_is_one_message_and_leaves_nothing(save, output_folder, hinder, prefix, reason):
    undo = hinder(output_folder)
    try:
        with pytest.raises(ValueError) as error:
            save(prefix)
    finally:
        undo()
    message = str(error.value)
    found = f"^Save ControlNet Residuals: '{prefix[:40]}.*' cannot be saved in the output folder .*({reason}).*: free space there, "
    assert re.search(found, message) and len(message) < 400 and str(output_folder) not in message, message
    assert not [path for path in output_folder.rglob("*") if path.is_file()]
    assert save("sub/a") == "a_00001_.safetensors"


def test_those_who_save_under_one_name_at_once_all_keep_their_files(save, output_folder, pack):
    """Threads stand for two servers on one folder: the host gives several of them the same index."""
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda value: save("both/x", value), range(40)))
    assert sorted(names) == sorted(path.name for path in (output_folder / "both").iterdir()) and len(set(names)) == 40
    read = [pack("unet").read_residuals(output_folder / "both" / name).controls[0] for name in names]
    assert [control.unique().tolist() for control in read] == [[value] for value in range(40)]
