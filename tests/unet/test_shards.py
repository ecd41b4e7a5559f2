"""Weights in several files, and diffusers' folders: opened as one, and what is said of those that are not whole or hostile."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from support.families import TINY, in_diffusers_layout, random_weights
from unet import UNetFileError, open_checkpoint

NAME = "sd1_tiny"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
PARTS = [f"diffusion_pytorch_model-0000{index}-of-00002.safetensors" for index in (1, 2)]


def in_diffusers(name=NAME) -> dict[str, torch.Tensor]:
    return in_diffusers_layout(TINY[name], random_weights(TINY[name]))


def halves(tensors):
    names = list(tensors)
    return [{name: tensors[name] for name in names[begin::2]} for begin in (0, 1)]


def write_set(folder, tensors=None, index=True):
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for file, part in zip(PARTS, halves(tensors or in_diffusers()), strict=True):
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder / INDEX


def equal(checkpoint, name=NAME) -> bool:
    found, expected = checkpoint.state_dict(), random_weights(TINY[name])
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("entry", [INDEX, *PARTS, "folder"])
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_set_is_one_network_by_its_index_any_part_or_its_folder(layout, entry, tmp_path):
    write_set(tmp_path / "model" / "unet", in_diffusers() if layout == "diffusers" else random_weights(TINY[NAME]))
    path = tmp_path / "model" if entry == "folder" else tmp_path / "model" / "unet" / entry
    opened = open_checkpoint(path)
    assert (opened.family.name, len(opened.stamps), opened.unexpected) == (NAME, 2, []) and equal(opened)


def test_parts_without_an_index_are_a_set(tmp_path):
    write_set(tmp_path, index=False)
    assert equal(open_checkpoint(tmp_path / PARTS[1]))


def test_a_pickled_set_is_the_same(tmp_path):
    for index, part in enumerate(halves(in_diffusers())):
        torch.save(part, tmp_path / f"pytorch_model-0000{index + 1}-of-00002.bin")
    assert equal(open_checkpoint(tmp_path / "pytorch_model-00001-of-00002.bin"))


@pytest.mark.parametrize("part", PARTS)
def test_a_change_of_any_part_is_noticed(part, tmp_path):
    opened = open_checkpoint(write_set(tmp_path))
    (tmp_path / part).write_bytes((tmp_path / part).read_bytes()[:-8])
    assert opened.changed_in_place()
    with pytest.raises(UNetFileError, match="changed after it was opened"):
        opened.state_dict()


@pytest.mark.parametrize("entry", [INDEX, PARTS[0]])
def test_a_missing_part_is_named(entry, tmp_path):
    write_set(tmp_path)
    (tmp_path / PARTS[1]).unlink()
    with pytest.raises(UNetFileError, match=rf"^{re.escape(entry)}: .*{re.escape(PARTS[1])} is missing\. Put "):
        open_checkpoint(tmp_path / entry)


def test_a_whole_network_under_the_name_of_a_part_loads(tmp_path):
    save_file(in_diffusers(), tmp_path / PARTS[0])
    assert equal(open_checkpoint(tmp_path / PARTS[0]))


def test_parts_of_different_sets_are_refused(tmp_path):
    path = write_set(tmp_path)
    save_file(in_diffusers(), tmp_path / PARTS[1])
    with pytest.raises(UNetFileError, match=f"is both in {PARTS[0]} and in {PARTS[1]}: these are parts of different sets"):
        open_checkpoint(path)


HOSTILE = {  # text of an index -> what is said of it
    "up": ('{"weight_map": {"a": "../x.safetensors"}}', "'../x.safetensors' in its weight_map, expected names of files next to it"),
    "absolute": ('{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd' in its weight_map"),
    "back slash": (r'{"weight_map": {"a": "..\\x"}}', "in its weight_map"),
    "drive": ('{"weight_map": {"a": "C:x"}}', "'C:x' in its"),
    "dots": ('{"weight_map": {"a": ".."}}', "'..' in its"), "NUL": (r'{"weight_map": {"a": "a\u0000"}}', "in its weight_map"),
    "empty name": ('{"weight_map": {"a": ""}}', "'' in its"), "no text": ('{"weight_map": {"a": 5}}', "without a weight_map"),
    "list": ('{"weight_map": ["a"]}', "without a weight_map"), "no index": ('{"a": 1}', "without a weight_map"),
    "empty": ('{"weight_map": {}}', "without a weight_map"), "cut": ('{"weight_map": {"a": ', "that is damaged"),
    "deep": ('{"a":' * 100_000, "that is damaged"), "huge number": ('{"a": 1' + "0" * 5000 + "}", "that is damaged"),
    "many files": (json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(1000)}}), "of 1,000 files, expected 500"),
    "a million names": ('{"weight_map": {' + ",".join(f'"{i}": "x"' for i in range(10**6)) + "}}", "of 13 MiB, expected 4 at most"),
    "itself": ('{"weight_map": {"a": "odd.index.json"}}', "safetensors"), "missing": ('{"weight_map": {"a": "b"}}', "b is missing"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_index_is_one_short_error(case, tmp_path):
    text, said = HOSTILE[case]
    (tmp_path / "odd.index.json").write_text(text)
    with pytest.raises(UNetFileError, match="odd.index.json") as error:
        open_checkpoint(tmp_path / "odd.index.json")
    assert said in str(error.value) and len(str(error.value)) <= 1000


def folder_of(tmp_path, config, name=NAME, scheduler=None):
    unet = tmp_path / "model" / "unet"
    unet.mkdir(parents=True)
    save_file(in_diffusers(name), unet / "diffusion_pytorch_model.safetensors")
    (unet / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if scheduler is not None:
        (tmp_path / "model" / "scheduler").mkdir()
        (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text(scheduler)
    return tmp_path / "model"


CONFIG = {
    "_class_name": "UNet2DConditionModel", "block_out_channels": [32, 64, 128], "in_channels": 4, "cross_attention_dim": 768,
}


@pytest.mark.parametrize("more, heads", [
    ({"attention_head_dim": 4}, (4, None)), ({"attention_head_dim": [1, 2, 4]}, (None, 32)),
    ({"attention_head_dim": 8, "num_attention_heads": 2}, (2, None)), ({}, (8, None)),
    ({"attention_head_dim": 4, "in_channels": 9}, (8, None)), ({"attention_head_dim": 4, "_class_name": "VQModel"}, (8, None)),
])
def test_heads_are_those_of_the_config_of_the_same_network(more, heads, tmp_path):
    """`attention_head_dim` is the count of heads in diffusers' 2-D networks."""
    config = open_checkpoint(folder_of(tmp_path, CONFIG | more)).config
    assert (config.num_heads, config.head_channels) == heads


@pytest.mark.parametrize("heads", [10**30, -1, 0.5, "8", [8, 8], [True] * 3, [1, 4, 4], 7])
def test_heads_that_do_not_fit_are_refused(heads, tmp_path):
    with pytest.raises(UNetFileError, match="^model: config.json next to it counts .* expected one width, or one count"):
        open_checkpoint(folder_of(tmp_path, CONFIG | {"attention_head_dim": heads}))


@pytest.mark.parametrize("text", ["[]", "5", "", '{"a":' * 100_000, '{"a": 1' + "0" * 5000 + "}"])
def test_a_config_of_something_else_is_no_matter_but_not_the_schedulers(text, tmp_path):
    assert open_checkpoint(folder_of(tmp_path, text)).config == TINY[NAME]
    with pytest.raises(UNetFileError, match="^model: scheduler/scheduler_config.json, .* cannot be read"):
        open_checkpoint(folder_of(tmp_path / "other", text, scheduler=text))


def test_the_smaller_file_of_a_folder_is_taken_and_an_empty_one_is_named(tmp_path):
    folder = folder_of(tmp_path, CONFIG)
    smaller = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({name: value.half() for name, value in in_diffusers().items()}, smaller)
    assert open_checkpoint(folder).dtype() == torch.float16
    with pytest.raises(UNetFileError, match="^scheduler: it is a folder, expected a file, or a folder of diffusers' layout"):
        (folder / "scheduler").mkdir()
        open_checkpoint(folder / "scheduler")


@pytest.mark.parametrize("name", ["sd1_tiny", "sd2_tiny"])
def test_a_linear_layer_stored_as_a_convolution_or_the_other_way_round_is_read_reshaped(name, tmp_path):
    """A 2-D proj_in in an SD 1 was taken for an SD 2's: the wrong count of heads."""
    def other(key, value):
        if re.search(r"proj_(in|out)\.weight$", key):
            return value[:, :, 0, 0].contiguous() if value.ndim == 4 else value[:, :, None, None].contiguous()
        return value

    save_file({key: other(key, value) for key, value in in_diffusers(name).items()}, tmp_path / "a.safetensors")
    opened = open_checkpoint(tmp_path / "a.safetensors")
    assert (opened.family.name, opened.config) == (name, TINY[name]) and equal(opened, name)
