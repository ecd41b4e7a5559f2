"""The other models in GGUF and pickled checkpoints: those of the same values in a safetensors file, without reading the UNet."""

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.model import Encoder
from comfy.ldm.modules.temporal_ae import VideoDecoder
from safetensors.torch import save_file

from support.families import PREFIX, TINY
from support.gguf_networks import write_gguf
from tools import untrained
from tools.untrained import CLIP_L, SD15, VAE_SEED, clip_weights, vae_weights
from unet.weights.gguf_file import GGUFFile
from unet.weights.pickles import PickledFile

TEXT, VAE = "cond_stage_model.transformer.", "first_stage_model."
UNSET = "clip_l.transformer.text_projection.weight"  # which no checkpoint of Stable Diffusion 1 has


def counted(shapes, *_) -> dict[str, torch.Tensor]:
    """Tensors of these shapes, quickly made, and no two values next to each other alike."""
    return {name: (torch.arange(torch.Size(shape).numel()) % 251 / 125 - 1).reshape(shape).half() for name, shape in shapes.items()}


@pytest.fixture
def parts_of(pack):
    parts, open_checkpoint = pack("nodes.bridge.model.checkpoint_parts"), pack("unet").open_checkpoint
    return lambda path: parts.load_parts(open_checkpoint(path))


@pytest.fixture
def read(pack, monkeypatch):
    """The names of the tensors that are read from files, in a set that grows."""
    names = set()
    for module, kind in (("gguf_file", GGUFFile), ("pickles", PickledFile)):
        opened = getattr(pack(f"unet.weights.{module}"), kind.__name__)
        get = opened.get_tensor
        monkeypatch.setattr(opened, "get_tensor", lambda self, name, get=get: (names.add(name), get(self, name))[1])
    return names


def state(part) -> dict[str, torch.Tensor]:
    return {name: value for name, value in part.patcher.model.state_dict().items() if name != UNSET}


def same(ours, theirs) -> bool:
    ours, theirs = state(ours), state(theirs)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
@pytest.mark.one_host
def test_text_encoder_and_vae_of_gguf_and_pickled_checkpoints_are_those_of_safetensors(parts_of, read, tmp_path, monkeypatch):
    """Both can be made again from the file, for another device."""
    monkeypatch.setattr(untrained, "random_tensors", counted)
    weights = clip_weights(**CLIP_L, seed=1).items()
    beside = {TEXT + name: value for name, value in weights if name != "text_projection.weight"}
    beside |= {VAE + name: value for name, value in vae_weights(VAE_SEED).items() if value.ndim}
    values = write_gguf(tmp_path / "c.gguf", SD15, dialect="sdcpp", beside=beside)
    values = {name if name in beside else PREFIX + name: value for name, value in values.items()}
    save_file(values, tmp_path / "c.safetensors")
    torch.save({"state_dict": values}, tmp_path / "c.ckpt")
    expected = parts_of(tmp_path / "c.safetensors")
    for name in ("c.gguf", "c.ckpt"):
        found = parts_of(tmp_path / name)
        assert same(found.clip, expected.clip) and same(found.vae, expected.vae)
    for part in (found.clip, found.vae):
        make, arguments = part.patcher.cached_patcher_init
        assert make(*arguments, disable_dynamic=True).model.state_dict().keys() == part.patcher.model.state_dict().keys()
    assert read >= beside.keys() and not [name for name in read if name.startswith(PREFIX)]


@pytest.mark.slow
@pytest.mark.one_host
def test_kernels_over_frames_of_a_vae_have_five_dimensions_again(parts_of, tmp_path):
    """stable-diffusion.cpp writes them with four, SVD's own VAE has 29."""
    sizes = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
             "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": []}
    with torch.device("meta"):
        networks = {"encoder": Encoder(**sizes), "decoder": VideoDecoder(**sizes, video_kernel_size=[3, 1, 1])}
    shapes = {f"{half}.{name}": tuple(t.shape) for half, net in networks.items() for name, t in net.state_dict().items()}
    assert sum(len(shape) == 5 for shape in shapes.values()) == 29
    vae = counted(shapes)
    values = write_gguf(tmp_path / "c.gguf", TINY["svd"], dialect="sdcpp", beside={VAE + name: t for name, t in vae.items()})
    found = state(parts_of(tmp_path / "c.gguf").vae)
    assert found.keys() == vae.keys() and all(torch.equal(value, values[VAE + name]) for name, value in found.items())


def test_a_kernel_that_does_not_fit_its_bias_is_named_with_the_file(parts_of, tmp_path):
    vae = {"decoder.mid.block_1.mix_factor": torch.zeros(1), "decoder.conv_in.weight": torch.zeros(6, 4, 3, 3),
           "decoder.conv_in.bias": torch.zeros(4)}
    write_gguf(tmp_path / "c.gguf", TINY["sd1_tiny"], dialect="sdcpp", beside={VAE + name: t for name, t in vae.items()})
    with pytest.raises(ValueError, match="c.gguf: the VAE in it cannot be loaded"):
        parts_of(tmp_path / "c.gguf")
