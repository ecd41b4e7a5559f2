"""Pickled files and safetensors: the same networks are found in both, with the same values."""

import functools
import itertools

import pytest
import torch
from safetensors.torch import save_file

from support import controlnexts
from support.families import PREFIX, TINY, write_unet
from support.public_controlnets import public_tensors
from unet import ControlNeXt, SVDControlNet, UNetFileError, find_controlnet, open_checkpoint, open_controlnet, open_controlnext
from unet.weights.files import open_any, shapes_of

made = functools.cache(lambda make, *args: {key: value.contiguous() for key, value in make(*args).items()})
NETS = {  # name -> (what makes its tensors, network, opener)
    "SVD ControlNet": ((public_tensors,), SVDControlNet, open_controlnet),
    "ControlNeXt v1": ((controlnexts.tensors, 1), ControlNeXt, open_controlnext),
    "ControlNeXt v2": ((controlnexts.tensors, 2), ControlNeXt, open_controlnext),
}
WAYS = {  # how a file may have been pickled
    "now": torch.save,
    "before 1.6": lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False),
    "under one name": lambda tensors, path: torch.save({"model": tensors}, path),
    "as a state dict": lambda tensors, path: torch.save({"epoch": 3, "state_dict": tensors}, path),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name if "NeXt" in name else pytest.param(name, marks=pytest.mark.slow) for name in NETS])
def test_a_pickled_net_is_the_same_as_in_safetensors(name, way, tmp_path):
    make, network, opener = NETS[name]
    tensors = {key: value.half() for key, value in made(*make).items()}
    save_file(tensors, tmp_path / "net.safetensors")
    WAYS[way](tensors, tmp_path / "controlnet.bin")
    assert find_controlnet(tmp_path / "controlnet.bin") is network
    pickled, expected = opener(tmp_path / "controlnet.bin"), opener(tmp_path / "net.safetensors")
    assert (pickled.config, pickled.parameters, pickled.dtype()) == (expected.config, expected.parameters, torch.float16)
    found, wanted = pickled.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("way, ending", [
    ("safetensors", "pth"), ("now", "safetensors"),
    *(pytest.param(way, ending, marks=pytest.mark.slow) for way, ending in (
        *itertools.product(("now", "safetensors"), ("bin", "sft", "txt")), ("now", "pth"), ("safetensors", "safetensors"),
        *((way, "safetensors") for way in WAYS if way != "now"),
    )),
])
def test_a_file_is_what_its_content_says_whatever_its_ending(way, ending, tmp_path):
    path = tmp_path / f"net.{ending}"
    WAYS.get(way, save_file)(made(public_tensors), path)
    assert find_controlnet(path) is SVDControlNet
    assert open_controlnet(path).state_dict().keys() == open_controlnet(path).names.keys()


def test_a_safetensors_header_may_begin_as_a_pickle_does(tmp_path):
    """Its first byte is that of the header's length: 128 modulo 256."""
    for pad in range(0, 256, 8):
        save_file({"a": torch.zeros(1)}, tmp_path / "net.pth", {"pad": "x" * pad})
        if (tmp_path / "net.pth").read_bytes()[0] == 0x80:
            assert shapes_of(open_any(tmp_path / "net.pth")) == {"a": (1,)}
            return
    pytest.fail("no header of that length was made")


def test_a_pickled_net_that_lacks_a_tensor_is_refused_by_name(tmp_path):
    tensors = dict(made(public_tensors))
    del tensors["conv_in.bias"]
    torch.save(tensors, tmp_path / "depth.bin")
    with pytest.raises(UNetFileError, match="^depth.bin: .*1 missing .input_blocks.0.0.bias"):
        open_controlnet(tmp_path / "depth.bin")


@pytest.mark.parametrize("found", [[1, 2], torch.zeros(2), None, {}, {1: torch.zeros(2)}, {"state_dict": [1]}, {"a": 1}])
def test_what_is_no_tensor_under_a_name_does_not_count(found, tmp_path):
    torch.save(found, tmp_path / "other.pt")
    assert shapes_of(open_any(tmp_path / "other.pt")) == {}
    assert find_controlnet(tmp_path / "other.pt") is None


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    torch.save({"a": torch.zeros(2), "b": Runs()}, tmp_path / "hostile.bin")
    with pytest.raises(UNetFileError, match="^hostile.bin cannot be read as a PyTorch file .*Python objects"):
        find_controlnet(tmp_path / "hostile.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_a_pickled_checkpoint_is_the_same_as_in_safetensors(way, ending, tmp_path):
    """With what a training's checkpoint holds besides: copies that the EMA keeps, other models, integers."""
    weights = write_unet(tmp_path / "unet.safetensors", TINY["sd1_tiny"], dtype=torch.float16)
    others = {"model_ema.diffusion_modelinput_blocks00weight": torch.zeros(3), "model_ema.num_updates": torch.tensor(7)}
    tensors = {PREFIX + name: value for name, value in weights.items()} | others | {"first_stage_model.decoder.x": torch.ones(2)}
    WAYS[way](tensors, tmp_path / f"pickled.{ending}")
    found = open_checkpoint(tmp_path / f"pickled.{ending}")
    assert (found.family.name, found.dtype(), found.unexpected) == ("sd1_tiny", torch.float16, [])
    state = found.state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)
