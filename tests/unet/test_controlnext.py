"""ControlNeXt-SVD against its authors' formulas in fp64, and its files: detected, whole and damaged."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from support import controlnexts
from support.controlnexts import LEVELS, OUT
from support.families import FULL, TINY, random_weights, relative_error
from unet import (
    ControlNeXt,
    UNetFileError,
    find_controlnet,
    open_checkpoint,
    open_controlnet,
    open_controlnext,
)
from unet.controlnext import join
from unet.encoder import Builder, Encoder
from unet.layers import Downsample
from unet.weights.controlnext_file import controlnext_names, read_controlnext_config

VERSIONS = (1, 2)


def doubles(version):
    return {name: value.double() for name, value in controlnexts.tensors(version).items()}


def images(count, height=48, width=64, seed=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def write(tmp_path):
    def write(tensors, name="pose.safetensors", metadata=None):
        save_file(tensors, tmp_path / name, metadata)
        return tmp_path / name

    return write


@pytest.fixture
def load(write):
    def load(tensors):
        opened = open_controlnext(write(tensors))
        net = ControlNeXt(opened.config, dtype=torch.float64)
        net.load_state_dict(opened.state_dict())
        return net.requires_grad_(False).eval()

    return load


@pytest.mark.parametrize("t", [1.64, -0.3, -1.55])  # 0.25 ln sigma of SVD's first, a middle and its last step
@pytest.mark.parametrize("version", VERSIONS)
def test_the_feature_equals_the_published_formula(load, version, t):
    weights, image = doubles(version), images(2)
    net = load(weights)
    expected = controlnexts.feature(weights, image, t)
    ours = net(image, torch.tensor([t], dtype=torch.float64))
    assert ours.shape == expected.shape == (2, OUT[version], *((2, 2) if version == 1 else (5, 7)))
    assert relative_error(ours, expected) <= 1e-6  # the sinusoids are fp32
    assert relative_error(ours, net(image, torch.tensor([t + 0.5]))) > 1e-3, "the step does not matter"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_residual_blocks_are_diffusers(load, version):
    """The authors take ResnetBlock2D, Downsample2D and TimestepEmbedding from diffusers, with its defaults."""
    from diffusers.models import resnet

    weights = doubles(version)
    net = load(weights)
    emb = torch.randn(2, 256, dtype=torch.float64)
    for level, (n_in, n_out, groups) in enumerate(LEVELS[version]):
        res = resnet.ResnetBlock2D(in_channels=n_in, out_channels=n_out, temb_channels=256, groups=groups)
        down = resnet.Downsample2D(n_out, use_conv=True, out_channels=n_out, padding=1, name="op")
        for module, prefix in ((res, f"down_res.{level}."), (down, f"down_sample.{level}.")):
            module.double().load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        x = torch.randn(2, n_in, 9, 6, dtype=torch.float64)
        with torch.no_grad():
            expected = down(res(x, emb))
        assert relative_error(net.down_sample[level](net.down_res[level](x, emb)), expected) <= 1e-12


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (11, 15), (30, 20)])
def test_joining_equals_the_published_formula(size):
    generator = torch.Generator().manual_seed(3)
    h = 3 + 2 * torch.randn(3, 8, *size, generator=generator, dtype=torch.float64)
    control = torch.randn(3, 8, 11, 15, generator=generator, dtype=torch.float64) * torch.tensor([1, 7, 0.1]).view(3, 1, 1, 1)
    assert relative_error(join(h, control, 0.14) - h, controlnexts.joined(h, control, 0.14) - h) <= 1e-12


def test_gains_are_the_authors():
    """v2: 0.2, and nothing where unconditioned. v1: 1.3 sigmoid(scale), and of a scale of 0 where unconditioned."""
    assert ControlNeXt(config_of(2)).gains() == (0.2, 0.0)
    net = ControlNeXt(config_of(1))
    net.strength.scale.data.fill_(0.8766)
    assert net.gains() == pytest.approx((1.3 / (1 + 2.718281828 ** -0.8766), 0.65))


def config_of(version):
    shapes = {name: tuple(value.shape) for name, value in controlnexts.tensors(version).items()}
    return read_controlnext_config({name: shapes[on_disk] for name, on_disk in controlnext_names(shapes).items()})


def test_where_the_feature_joins_svd():
    """v2 after the first downsampling, v1 after the last block of the down path: found in a UNet's own blocks."""
    svd = FULL["svd"]
    build = Builder(svd, torch.nn, {"dtype": None, "device": "meta"})
    blocks = Encoder(svd, build, None).input_blocks
    first_down = next(index for index, block in enumerate(blocks) if isinstance(block[0], Downsample))
    widths = {first_down: blocks[first_down][0].op.out_channels, len(blocks) - 1: blocks[-1][0].out_layers[-1].out_channels}
    for version, block in ((2, first_down), (1, len(blocks) - 1)):
        config = config_of(version)
        assert config.unet_block(svd) == block
        assert svd.input_layout()[block].channels == OUT[version] == widths[block]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_small_budget_changes_nothing(load, version):
    net, image = load(doubles(version)), images(3)
    seen = []
    net.embedding.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[0]))
    whole = net(image, torch.tensor([0.5]))
    assert relative_error(net(image, torch.tensor([0.5]), budget=1), whole) <= 1e-12
    assert seen == [3, 1, 1, 1]


@pytest.mark.parametrize("version, parameters", [(1, 5.61), (2, 3.53)])
def test_the_published_files_are_known_by_their_names_alone(write, version, parameters):
    file = write({name: value.half() for name, value in controlnexts.tensors(version).items()})
    assert find_controlnet(file) is ControlNeXt
    opened = open_controlnext(file)
    assert opened.config.version == version and opened.config.out_channels == OUT[version]
    assert not opened.unexpected and opened.dtype() is torch.float16
    assert set(opened.names.values()) == set(controlnexts.tensors(version))
    state = opened.state_dict(torch.bfloat16)
    assert all(value.dtype is torch.bfloat16 for name, value in state.items() if name != "strength.scale")
    assert version == 2 or state["strength.scale"].dtype is torch.float32
    assert opened.parameters / 1e6 == pytest.approx(parameters, abs=0.01)


def without(version, start):
    return {name: value for name, value in controlnexts.tensors(version).items() if not name.startswith(start)}


DAMAGES = [
    (2, "embedding.", "without embedding"), (2, "embedding.0.", "embedding.0.weight is missing"),
    (2, "embedding.4.", "2 missing"), (2, "time_embedding.", "time_embedding.linear_1.weight is missing"),
    (2, "down_res.", "0 levels"), (2, "down_res.1.", "1 levels"), (2, "down_sample.", "4 missing"),
    (2, "mid_convs.", "mid_convs.1.weight is missing"), (2, "mid_convs.0.4.bias", "1 missing"),
    (1, "scale", "3 levels .* and no learned scale"), (1, "down_res.2.", "2 levels .* and a learned scale"),
]


@pytest.mark.parametrize("version, gone, words", DAMAGES)
def test_a_damaged_file_is_refused_by_name(write, version, gone, words):
    file = write(without(version, gone))
    assert find_controlnet(file) is ControlNeXt, "the host would be asked, which cannot tell what it is"
    with pytest.raises(UNetFileError, match=f"^pose.safetensors: .*{words}"):
        open_controlnext(file)


def test_misshaped_tensors_are_refused(write):
    for name, shape, words in (
        ("down_res.0.conv2.weight", (128, 64, 3, 3), "of another shape"), ("embedding.0.weight", (3, 3, 3, 3), "groups"),
        ("mid_convs.1.weight", (320,), "no matrix"),
    ):
        file = write({**controlnexts.tensors(2), name: torch.zeros(shape)})
        with pytest.raises(UNetFileError, match=f"^pose.safetensors: .*{words}"):
            open_controlnext(file)


def test_the_one_of_sd15_is_refused(write):
    """It has the same modules except the first, and three channels where the SVD ones have an embedding."""
    tensors = without(1, "embedding.")
    tensors["down_res.0.conv1.weight"] = torch.zeros(128, 3, 3, 3)
    with pytest.raises(UNetFileError, match="pose.safetensors: .*Stable Diffusion 1.5"):
        open_controlnext(write(tensors))


def test_kinds_are_distinguished(write, tmp_path):
    other = write(random_weights(replace(TINY["sd1_tiny"], context_dim=8)), "unet.safetensors")
    assert find_controlnet(other) is None
    with pytest.raises(UNetFileError, match="unet.safetensors: it holds no ControlNeXt"):
        open_controlnext(other)
    file = write(controlnexts.tensors(2))
    with pytest.raises(UNetFileError, match="pose.safetensors: it holds no SVD ControlNet"):
        open_controlnet(file)
    with pytest.raises(UNetFileError, match="pose.safetensors: it holds no UNet"):
        open_checkpoint(file)
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UNetFileError, match="cut.safetensors: it is cut off"):
        find_controlnet(tmp_path / "cut.safetensors")
