"""Save UNet: a MODEL with its LoRAs to a file that loads equal, whatever loaded the MODEL, and no half or lost file."""

import json
import shutil
from pathlib import Path

import comfy.model_management as management
import folder_paths
import pytest
import torch
from comfy.model_base import ModelType
from comfy_api.latest import io
from gguf import GGUFReader, dequantize
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.families import TINY, in_diffusers_layout, random_weights, relative_error, write_unet
from support.gguf_networks import write_gguf
from support.oracle import ROWS, SMALL, Pair, host_model, prompts, run_node, sample
from tools.convert import convert

SD = "sd2"


@pytest.fixture
def output(tmp_path):
    """The host's output folder, empty."""
    before, folder = folder_paths.get_output_directory(), tmp_path / "output"
    folder.mkdir()
    folder_paths.set_output_directory(str(folder))
    yield folder
    folder_paths.set_output_directory(before)


def prepared(node):
    """The node's class as the host runs it, with its hidden inputs."""
    hidden = {io.Hidden.prompt: {"1": {"inputs": {}}}, io.Hidden.extra_pnginfo: {"workflow": {"nodes": []}}}
    return node("TemporalUNetSave").PREPARE_CLASS_CLONE({"hidden_inputs": hidden})


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("svd"), "svd", dtype=torch.float16)


@pytest.fixture
def save(node, output):
    """Saves a MODEL and returns the path of the file."""
    def run(model, format="safetensors", kind="fp16", *dialect):
        before = set(output.rglob("*"))
        run_node(prepared(node), model, "models/a", format, kind, *dialect)
        made = [path for path in set(output.rglob("*")) - before if path.is_file()]
        assert len(made) == 1
        return made[0]
    return run


@pytest.fixture
def load(pack):
    def run(path, dtype=None):
        return pack("nodes.bridge.model.unet_loader").load_model(str(path), {} if dtype is None else {"dtype": dtype})
    return run


def with_lora(model, strength=0.7):
    """The MODEL with low-rank patches on a linear layer, a convolution, one over time where it has that, and a bias."""
    generator = torch.Generator().manual_seed(4)
    chosen = ["input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", "middle_block.0.in_layers.2.weight", "out.2.bias"]
    names = dict(model.model.diffusion_model.named_parameters())
    chosen += [name for name in ("input_blocks.1.0.time_stack.in_layers.2.weight",) if name in names]
    patched = model.clone()
    patches = {f"diffusion_model.{name}": ("diff", (0.1 * torch.randn(names[name].shape, generator=generator),)) for name in chosen}
    assert len(patched.add_patches(patches, strength)) == len(chosen)
    return patched


def result(model, name):
    return sample(model, *prompts(SMALL[name]), steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("loaded_before", [False, pytest.param(True, marks=pytest.mark.one_host)])
def test_a_model_with_loras_loads_equal_again(svd, save, load, loaded_before):
    """Also where the LoRAs are in the weights on the device, or those of another MODEL of the same network."""
    model = with_lora(svd.ours)
    if loaded_before:
        management.load_models_gpu([with_lora(svd.ours, -2.0)])
    path = save(model)
    assert torch.equal(result(load(path, torch.float16), "svd"), result(model, "svd"))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert metadata["temporal_unet.version"] and metadata["workflow"] == '{"nodes": []}' and "prompt" in metadata
        for name, weight in svd.ours.model.diffusion_model.state_dict().items():
            assert file.get_tensor(name).dtype == (torch.float32 if name.endswith("mix_factor") else torch.float16), weight.dtype


def test_every_weight_is_saved_as_it_is_and_the_model_stays(pack, tmp_path, save, load):
    path = tmp_path / "a.safetensors"
    weights = write_unet(path, SMALL["sdxl"], metadata={"temporal_unet.head_channels": "32"})
    model = load(path, torch.float32)
    with safe_open(save(model, kind="fp32"), "pt") as file:
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in weights.items())
    assert all(torch.equal(value, weights[name]) for name, value in model.model.diffusion_model.state_dict().items())


@pytest.mark.slow
def test_a_model_of_the_hosts_own_loader_is_saved_with_its_patches(save, load):
    weights = random_weights(SMALL[SD])
    model = with_lora(host_model(weights, ROWS[SD], head_channels=32))
    ours = load(save(model, kind="fp32"), torch.float32)
    assert relative_error(result(ours, SD), result(model, SD)) < 1e-5
    key = "middle_block.0.in_layers.2.weight"
    on_device = model.model.diffusion_model.state_dict()[key]  # where the host has patched it, for the sampling
    assert torch.equal(ours.model.diffusion_model.state_dict()[key], on_device) and not torch.equal(on_device, weights[key])


def write_searched(path) -> dict[str, torch.Tensor]:
    """A GGUF file whose scales are not what its values give, as programs write it that search for better ones; its values."""
    values = write_gguf(path, SMALL["sd1_tiny"], "Q8_0")
    for tensor in GGUFReader(path, "r+").tensors:
        if tensor.tensor_type.name == "Q8_0":
            tensor.data.reshape(-1, 34)[:, 2:].view("int8")[:] //= 3
            dequantized = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
            values[tensor.name] = dequantized.reshape(values[tensor.name].shape)
    return values


def stored(path) -> dict[str, tuple[str, bytes]]:
    """Format and bytes of every tensor in a GGUF file, by the public reader."""
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


def test_gguf_weights_that_nothing_patches_are_saved_byte_for_byte(tmp_path, save, load):
    """Also those that a LoRA of another MODEL is in on the device; of this MODEL's own LoRA the weight is quantized again."""
    path, name = tmp_path / "a.gguf", "input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"
    values = write_searched(path)
    model = load(path)
    patched = model.clone()
    assert patched.add_patches({f"diffusion_model.{name}": ("diff", (torch.ones(64, 64),))})
    management.load_models_gpu([patched])
    source = {name: entry for name, entry in stored(path).items() if entry[0] == "Q8_0"}
    saved, with_patch = (stored(save(each, "GGUF", "Q8_0")) for each in (model, patched))
    assert len(source) > 50 and [name for name in source if saved[name] != source[name]] == []
    assert [name for name in source if with_patch[name] != source[name]] == [name]
    with safe_open(save(model, kind="fp32"), "pt") as file:
        assert [name for name in source if not torch.equal(file.get_tensor(name), values[name])] == []


MARKED = {  # tensors next to an SDXL -> those that are saved, and a setting that shows that they were read
    "v": ({"v_pred": torch.tensor([])}, {"v_pred"}),
    "v, zero terminal": ({"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, {"v_pred", "ztsnr"}),
    "edm": ({"edm_mean": torch.zeros(1, 4, 1, 1), "edm_std": torch.ones(1, 4, 1, 1)}, {"edm_mean", "edm_std"}),
    "edm, v": ({"edm_vpred.sigma_max": torch.tensor(90.0)}, {"edm_vpred.sigma_max", "edm_vpred.sigma_min"}),
    "noise": ({}, set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", MARKED)
def test_how_a_model_was_trained_is_detected_in_the_saved_file_again(pack, tmp_path, save, load, how):
    beside, expected = MARKED[how]
    write_unet(tmp_path / "a.safetensors", SMALL["sdxl"], beside=beside, dtype=torch.float16,
               metadata={"temporal_unet.head_channels": "32", "temporal_unet.num_frames": "9"})
    model = load(tmp_path / "a.safetensors")
    path = save(model)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) - set(model.model.diffusion_model.state_dict()) == expected
        assert file.metadata()["temporal_unet.num_frames"] == "9"
    again = load(path)
    assert again.model.model_type == model.model.model_type
    assert pack("unet").open_checkpoint(path).unexpected == []
    ours, theirs = again.get_model_object("model_sampling"), model.get_model_object("model_sampling")
    assert ours.sigma_max == theirs.sigma_max and ours.sigma_min == theirs.sigma_min


def test_v_prediction_of_an_sd_1_is_kept_in_its_file(tmp_path, save, load):
    write_unet(tmp_path / "a.safetensors", SMALL["sd1_tiny"], beside={"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])})
    model = load(tmp_path / "a.safetensors")
    again = load(save(model, "GGUF", "Q8_0"))
    assert again.model.model_type == model.model.model_type == ModelType.V_PREDICTION
    assert again.model.model_sampling.zsnr is model.model.model_sampling.zsnr is True


@pytest.mark.one_host
@pytest.mark.parametrize("wanted", [
    ("GGUF", "Q5_0", "comfy"),
    *(pytest.param(each, marks=pytest.mark.slow) for each in (("GGUF", "Q8_0", "sdcpp"), ("safetensors", "fp8", "comfy"))),
])
def test_a_file_that_is_converted_without_the_host_is_the_same(tmp_path, save, load, wanted):
    path, config = tmp_path / "a.safetensors", SMALL["sd1_tiny"]
    weights = write_unet(path, config, dtype=torch.float16, beside={"v_pred": torch.tensor([])})
    save_file(in_diffusers_layout(config, weights) | {"v_pred": torch.tensor([])}, tmp_path / "diffusers.safetensors")
    saved, converted = save(load(path, torch.float16), *wanted), tmp_path / f"b{'.gguf' if wanted[0] == 'GGUF' else '.safetensors'}"
    convert(tmp_path / "diffusers.safetensors", converted, *wanted[1:])
    if wanted[0] == "GGUF":
        assert list(stored(saved).items()) == list(stored(converted).items())
    else:
        ours, theirs = load_file(converted), load_file(saved)
        assert list(ours) == list(theirs) and all(ours[name].dtype == theirs[name].dtype for name in ours)
        assert all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours)


@pytest.mark.slow
@pytest.mark.one_host
def test_files_are_counted_and_none_is_overwritten(svd, save, output):
    first, other = save(svd.ours), save(svd.ours, "GGUF", "Q8_0")
    assert (first.name, other.name) == ("a_00001_.safetensors", "a_00002_.gguf")
    (output / "models" / "a_00003_.safetensors").write_bytes(b"another's")
    assert save(svd.ours, kind="fp8").name == "a_00004_.safetensors"


def test_cancel_ends_it_and_leaves_nothing(node, svd, output, monkeypatch):
    saving = node("TemporalUNetSave").execute.__func__.__globals__["save_network"].__globals__
    calls = []

    class Bar:
        def __init__(self, total):
            pass

        def update_absolute(self, done):
            calls.append(done)
            if len(calls) == 30:
                management.interrupt_current_processing()

    monkeypatch.setitem(saving, "ProgressBar", Bar)
    with pytest.raises(management.InterruptProcessingException):
        run_node(prepared(node), svd.ours, "models/a", "GGUF", "Q4_0")
    assert calls == sorted(calls) and len(calls) == 30
    assert not [path for path in output.rglob("*") if path.is_file()]


def test_a_full_disk_is_refused_before_anything_is_written(node, svd, output, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(2, 1, 1000))
    with pytest.raises(ValueError, match="Save UNet: 'models/a' is not saved: the file takes .* GB, and 1e-06 GB are free"):
        run_node(prepared(node), svd.ours, "models/a", "safetensors", "fp16")
    assert not [path for path in output.rglob("*") if path.is_file()]


def test_a_format_and_a_type_that_do_not_go_together_are_refused_when_queued_and_when_run(node, svd, output):
    save = node("TemporalUNetSave")
    message = save.validate_inputs("safetensors", "Q8_0")
    assert message == (
        "Save UNet: format safetensors and type Q8_0 do not go together: safetensors files are not written as Q8_0. Choose fp16, "
        "bf16, fp32 or fp8, or GGUF for Q8_0."
    )
    with pytest.raises(ValueError) as error:
        run_node(prepared(node), svd.ours, "a", "safetensors", "Q8_0")
    assert str(error.value) == message
    assert save.validate_inputs("GGUF", "Q8_0") is save.validate_inputs(None, None) is True


def test_a_model_of_another_family_and_weights_that_fp16_cannot_hold_are_named(node, svd, output):
    model = svd.ours.clone()
    model.add_patches({"diffusion_model.out.0.bias": ("diff", (torch.full((32,), 1e5),))})
    with pytest.raises(ValueError, match="Save UNet: 'a' is not saved: out.0.bias has values up to 1e[+]05, which F16 cannot hold"):
        run_node(prepared(node), model, "a", "safetensors", "fp16")
    other = host_model(random_weights(SMALL["sd1_tiny"]), ROWS["sd1_tiny"])
    other.model.diffusion_model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Save UNet: 'a' is not saved: it holds no UNet of this family"):
        run_node(prepared(node), other, "a", "safetensors", "fp16")
    assert not [path for path in Path(output).rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.one_host
def test_a_count_of_heads_that_one_file_cannot_say_is_refused(tmp_path, save, load):
    config = TINY["sd2_tiny"]  # as wide as the heads that would be detected
    save_file(in_diffusers_layout(config, random_weights(config)), tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({
        "_class_name": "UNet2DConditionModel", "block_out_channels": config.level_channels, "in_channels": config.in_channels,
        "cross_attention_dim": config.context_dim, "attention_head_dim": 2,
    }))
    with pytest.raises(ValueError, match=r"is not saved: it has 2 attention heads in all levels, where .* has heads of one width"):
        save(load(tmp_path / "a.safetensors"))
