"""A network that is sent to another process as arrays, or read there, computes what the network itself does."""

from dataclasses import asdict, replace

import pytest
import torch

from support.families import TINY, inputs, random_weights, relative_error, write_unet
from support.gguf_networks import write_gguf
from unet import UNetFileError, UNetModel, onednn, open_checkpoint, winograd
from unet.arrays import to_array, to_tensor
from unet.replica import Replica
from unet.weights.fingerprint import fingerprint

FRAMES = 3


def spec(config, **changed):
    plain = {"key": "it", "dtype": "float32", "path": None, "fingerprint": None, "packed": False, "forms": []}
    return {**plain, "config": asdict(config), **changed}


def from_file(path, config, **changed):
    return spec(config, path=str(path), fingerprint=fingerprint(open_checkpoint(path).stamps), **changed)


def called(replica, rows, frames=FRAMES):
    return to_tensor(replica.call("it", {name: to_array(row) for name, row in rows.items()}, {}, [], frames))


def network(config, weights):
    model = UNetModel(config)
    model.load_state_dict(weights)
    return model.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["svd", "sd1", "sdxl", "x4_upscaler"])
def test_a_network_that_was_sent_makes_of_two_videos_what_it_makes_itself(family):
    config = TINY[family]
    weights, frames = random_weights(config), FRAMES if config.temporal else 1
    rows = inputs(config, frames=frames, batch=2)
    replica = Replica("cpu")
    assert replica.begin(spec(config)) is False
    replica.put({name: to_array(weight) for name, weight in weights.items()})
    replica.finish()
    expected = network(config, weights)(**rows, num_frames=frames)
    assert relative_error(called(replica, rows, frames), expected) <= 1e-5
    assert replica.call("another", {}, {}, [], frames) is None


@pytest.fixture
def ran(monkeypatch):
    """The names of the quicker forms that ran, in order; this process would take every one."""
    names = []

    def note(module, form, probe):
        def noted(*args):
            names.append(form.__name__)
            return form(*args)

        monkeypatch.setattr(module, form.__name__, noted)
        monkeypatch.setitem(onednn.PROBES, noted, probe)
        for asked in ("_right", "_quicker"):
            monkeypatch.setitem(vars(probe), asked, True)

    for form, probe in list(onednn.PROBES.items()):
        note(onednn, form, probe)
    note(winograd, winograd.convolved, winograd.PROBE)
    for name, least in (("CHANNELS", 32), ("SQUARES", 16)):
        monkeypatch.setattr(winograd, name, least)
    return names


@pytest.mark.slow
def test_its_layers_take_the_quicker_forms_that_are_named_and_no_others(ran):
    config = TINY["sd1"]
    weights, rows = random_weights(config), inputs(config, size=(16, 16))
    expected = network(config, weights)(**rows)
    for forms in ([], ["plus"], ["linear", "gelu", "times", "plus", "convolved"]):
        ran.clear()
        replica = Replica("cpu")
        replica.begin(spec(config, forms=forms))
        replica.put({name: to_array(weight) for name, weight in weights.items()})
        replica.finish()
        assert relative_error(called(replica, rows, 1), expected) <= 1e-5 and set(ran) == set(forms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_other_dtypes_are_cast_to_that_of_the_input(dtype):
    config = TINY["sd1"]
    weights = {name: weight.to(dtype) for name, weight in random_weights(config).items()}
    replica = Replica("cpu")
    replica.begin(spec(config, dtype=str(dtype).removeprefix("torch.")))
    replica.put({name: to_array(weight) for name, weight in weights.items()})
    replica.finish()
    rows = inputs(config)
    expected = network(config, {name: weight.float() for name, weight in weights.items()})(**rows)
    assert relative_error(called(replica, rows, 1), expected) <= 1e-6


@pytest.mark.slow
def test_a_file_that_is_the_same_is_read_and_patched_weights_take_its_place(tmp_path):
    config = TINY["svd"]
    path = tmp_path / "unet.safetensors"
    weights = write_unet(path, config)
    replica = Replica("cpu")
    assert replica.begin(from_file(path, config)) is True
    name = "input_blocks.1.0.in_layers.2.weight"
    weights[name] = weights[name] * 1.5
    replica.put({name: to_array(weights[name])})
    replica.finish()
    rows = inputs(config, frames=FRAMES)
    assert relative_error(called(replica, rows), network(config, weights)(**rows)) <= 1e-5


@pytest.mark.slow
def test_gguf_weights_stay_packed(tmp_path):
    config = replace(TINY["sd1"], model_channels=64)
    path = tmp_path / "unet.gguf"
    write_gguf(path, config, "Q8_0")
    replica = Replica("cpu")
    assert replica.begin(from_file(path, config, packed=True)) is True
    replica.finish()
    rows = inputs(config)
    expected = network(config, open_checkpoint(path).state_dict(torch.float32))(**rows)
    assert relative_error(called(replica, rows, 1), expected) <= 1e-6
    linear = replica.network.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q")
    assert linear.kind.name == "Q8_0" and linear._parameters["weight"] is None


def test_another_file_under_the_same_name_is_refused_and_what_lacks_weights_is_not_called(tmp_path):
    config = TINY["sd1"]
    path, other = tmp_path / "here" / "unet.safetensors", tmp_path / "there" / "unet.safetensors"
    for each, seed in ((path, 0), (other, 1)):
        each.parent.mkdir()
        write_unet(each, config, seed=seed)
    there = from_file(other, config)
    replica = Replica("cpu")
    with pytest.raises(UNetFileError, match="another file under this name"):
        replica.begin({**there, "path": str(path)})
    assert path.stat().st_size == other.stat().st_size  # and the same header
    replica.begin(spec(config))
    with pytest.raises(ValueError, match="were not sent"):
        replica.finish()
    assert replica.call("it", {}, {}, [], 1) is None
