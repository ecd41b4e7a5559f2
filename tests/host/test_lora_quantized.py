"""Load LoRA on MODELs whose weights stay quantized: exact, layers over time too, and gone when it is taken off."""

import pytest
import torch

from support.diffusers_names import to_diffusers
from support.families import inputs, relative_error
from support.gguf_networks import write_gguf
from support.loras import STRENGTH, factors, keys, loader, product
from support.oracle import SMALL, run_node
from support.quantized import linear, write_quantized
from unet import UNetModel

CPU = torch.device("cpu")
CONFIG = SMALL["svd"]
WEAKER = -0.25


@pytest.fixture
def load(node, tmp_path, monkeypatch):
    return loader(node, tmp_path, monkeypatch)


def run(network):
    return network(**inputs(CONFIG, frames=2), num_video_frames=2)


def expected(weights):
    """What a network of these weights computes."""
    network = UNetModel(CONFIG)
    network.load_state_dict(weights)
    return network.requires_grad_(False)(**inputs(CONFIG, frames=2), num_frames=2)


def scaled_fp8(path):
    return write_quantized(path, CONFIG, "comfy_quant")[2]


def packed(path):
    return write_gguf(path, CONFIG, "Q4_0")


@pytest.mark.slow
@pytest.mark.parametrize("write", [scaled_fp8, packed])
def test_a_lora_acts_exactly_on_quantized_weights_and_leaves_no_trace(pack, load, tmp_path, write):
    """Fully loaded, and in low VRAM at the first call and the second: next to a plain network of the changed weights.

    The names are kohya's and diffusers' in turn; under its own names the file does the same by the host's node.
    """
    plain = write(tmp_path / "model")
    model = pack("nodes.bridge.model.unet_loader").load_model(str(tmp_path / "model"))
    network, generator = model.model.diffusion_model, torch.Generator().manual_seed(3)
    tensors, own, changed, weaker = {}, {}, dict(plain), dict(plain)
    for place, (name, weight) in enumerate(plain.items()):
        if place % 5 < 2 and (linear(name, weight) or weight.ndim == 5):
            up, down = factors(weight.shape, 2, generator)
            layer, theirs = name.removesuffix(".weight"), to_diffusers(name).removesuffix(".weight")
            for spelling, file in ((("kohya", "diffusers")[place % 5], tensors), ("ComfyUI", own)):
                file.update(zip(keys(spelling, layer, theirs), (up * 0.1, down), strict=False))  # alpha is the rank
            delta = product(up * 0.1, down, weight.shape)
            changed[name], weaker[name] = (weight + strength * delta.float() for strength in (STRENGTH, WEAKER))
    patched, info = load(model, tensors)
    count = len(tensors) // 2
    assert f"acts on {count} of its {count} layers" in info
    before = run(network)
    patched.patch_model(device_to=CPU)
    strong = run(network)
    assert relative_error(strong, expected(changed)) <= 1e-5
    patched.unpatch_model(device_to=CPU)
    assert run(network).equal(before)
    patched.load(CPU, lowvram_model_memory=1)
    assert [relative_error(run(network), expected(changed)) <= 1e-5 for _ in range(2)] == [True, True]
    patched.detach()
    assert run(network).equal(before) and relative_error(before, expected(changed)) > 1e-2
    again, _ = load(model, tensors, WEAKER)
    again.patch_model(device_to=CPU)
    assert relative_error(run(network), expected(weaker)) <= 1e-5
    again.unpatch_model(device_to=CPU)
    load(model, own, name="own.safetensors")
    import nodes as host_nodes

    [theirs] = run_node(host_nodes.LoraLoaderModelOnly, model, "own.safetensors", STRENGTH)
    theirs.patch_model(device_to=CPU)
    assert run(network).equal(strong)
    theirs.unpatch_model(device_to=CPU)
    assert run(network).equal(before)
