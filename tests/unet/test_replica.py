"""A network that is sent to another process as arrays, or read there, computes what the network itself does."""

from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from support.families import TINY, inputs, random_weights, relative_error, write_unet
from support.gguf_networks import write_gguf
from support.public_controlnets import public_tensors
from unet import SVDControlNet, UNetFileError, UNetModel, onednn, open_checkpoint, open_controlnet, winograd
from unet.arrays import to_array, to_tensor
from unet.embedded_hints import EmbeddedHints
from unet.replica import Replica
from unet.weights.fingerprint import fingerprint

FRAMES = 3


def spec(config, **changed):
    plain = {"key": "it", "kind": "unet", "dtype": "float32", "path": None, "fingerprint": None, "packed": False, "forms": []}
    return {**plain, "config": asdict(config), **changed}


def from_file(path, config, **changed):
    return spec(config, path=str(path), fingerprint=fingerprint(open_checkpoint(path).stamps), **changed)


def called(replica, rows, frames=FRAMES):
    return to_tensor(replica.call("it", {name: to_array(row) for name, row in rows.items()}, [], [], frames))


def network(config, weights):
    model = UNetModel(config, device="meta")
    model.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)
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
    assert replica.call("another", {}, [], [], frames) == ["another"]


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
    linear = replica.networks["it"].get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q")
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
    assert replica.call("it", {}, [], [], 1) == ["it"]


@pytest.mark.slow
def test_residuals_of_a_controlnet_and_such_that_were_sent_are_added_in_order(tmp_path):
    """A ControlNet of a file, with a strength and weights of frames and pixels, for two videos."""
    config = replace(TINY["svd"], model_channels=32, head_channels=32)
    path = tmp_path / "depth.safetensors"
    save_file(public_tensors(config), path, {"temporal_unet.head_channels": "32"})
    opened = open_controlnet(path)
    replica, weights = Replica("cpu"), random_weights(config)
    replica.begin(spec(config))
    replica.put({name: to_array(weight) for name, weight in weights.items()})
    replica.finish()
    file = {"path": str(path), "fingerprint": fingerprint(opened.stamps)}
    assert replica.begin(spec(opened.config, key="net", kind="svd_controlnet", **file), keep=["it"])
    replica.finish()

    net = SVDControlNet(opened.config)
    net.load_state_dict(opened.state_dict())
    rows, count = inputs(config, frames=FRAMES, batch=2), 2 * FRAMES
    x = rows["x"]
    images = torch.rand(FRAMES, 3, 8 * x.shape[2], 8 * x.shape[3]) * 2 - 1
    given = {name: row for name, row in rows.items() if name in ("x", "timesteps", "context", "y")}
    with torch.inference_mode():
        residuals = [0.5 * r for r in net(**given, hint=net.embed_hint(images).repeat(2, 1, 1, 1), num_frames=FRAMES)]
    sizes = dict.fromkeys(residual.shape[2:] for residual in residuals)
    by_pixel = {size: torch.rand(FRAMES, 1, *size) for size in sizes}
    shipped = [torch.randn_like(residual) for residual in residuals]
    expected = network(config, weights)(
        **rows, num_frames=FRAMES,
        controls=[s + r * by_pixel[r.shape[2:]].repeat(2, 1, 1, 1) for s, r in zip(shipped, residuals, strict=True)],
    )
    terms = [
        {"residuals": {"output": [to_array(r) for r in shipped[:-1]], "middle": [to_array(shipped[-1])], "input": []}},
        {"network": "net", "hints": ["a", "b", "c"], "strength": 0.5, "rows": {"y": to_array(rows["y"])},
         "weights": [to_array(weight) for weight in by_pixel.values()]},
    ]
    args = "it", {name: to_array(row) for name, row in rows.items()}, terms, [], FRAMES
    assert replica.call(*args) == ["a", "b", "c"]
    replica.embed("net", {name: to_array(image) for name, image in zip("abc", images, strict=True)})
    assert relative_error(to_tensor(replica.call(*args)), expected) <= 1e-5
    assert count == len(expected)
    replica.begin(spec(config, key="another"), keep=["it"])
    assert replica.call(*args[:2], [*terms, *terms], *args[3:]) == ["net"]


def test_images_that_were_used_last_are_kept_and_those_of_a_call_whatever_they_take():
    kept, row = EmbeddedHints(most=3 * 16), torch.zeros(4)
    for name in "abc":
        assert kept.need([name]) == [name]
        kept.put(name, row)
    assert kept.need(["a", "d", "a"]) == ["d"]
    kept.put("d", row)  # b goes, which was used first
    assert kept.need(["a", "b", "c", "d"]) == ["b"] and kept.bytes == 3 * 16
    kept.put("b", row)
    assert kept.need(["a", "b", "c", "d"]) == [] and kept.bytes == 4 * 16
    assert kept.rows(["a", "a"], torch.device("cpu")).shape == (2, 4)
