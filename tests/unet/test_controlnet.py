"""Our SVD ControlNet against diffusers' blocks put together by ControlNetSDVModel's formulas, from one file."""

import json
import os
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from support import formulas
from support.diffusers_names import to_diffusers
from support.families import FULL, inputs, random_weights, relative_error
from support.public_controlnets import CONFIG, WIDTHS, public_tensors
from unet import (
    ControlNetConfig,
    SVDControlNet,
    UNetFileError,
    UNetModel,
    find_controlnet,
    open_checkpoint,
    open_controlnet,
)
from unet.weights.controlnet_file import read_controlnet_config
from unet.weights.diffusers_names import to_ldm


@pytest.fixture(scope="module")
def tensors():
    return public_tensors()


@pytest.fixture
def file(tensors, tmp_path):
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "depth.safetensors")
    return tmp_path / "depth.safetensors"


def load(file, dtype=None):
    opened = open_controlnet(file)
    net = SVDControlNet(opened.config, dtype=dtype)
    net.load_state_dict(opened.state_dict())
    return net.requires_grad_(False).eval()


def reference(tensors, call, ids, hint, frames):
    """ControlNetSDVModel.forward in fp64, written out with diffusers' own blocks."""
    import diffusers  # which takes seconds

    net = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(64, 128, 256, 256), num_attention_heads=(1, 2, 4, 4), in_channels=8, out_channels=4,
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=768, cross_attention_dim=1024,
        layers_per_block=2,
    ).double().requires_grad_(False)
    own = {name: value for name, value in tensors.items() if not name.startswith("controlnet_")}
    missing, unexpected = net.load_state_dict(own, strict=False)
    assert not unexpected and all(re.match("up_blocks|conv_norm_out|conv_out", name) for name in missing)
    videos = ids.shape[0]
    emb = net.time_embedding(net.time_proj(call["timesteps"][::frames]).double())
    emb = emb + net.add_embedding(net.add_time_proj(ids.flatten()).reshape(videos, -1).double())
    emb = emb.repeat_interleave(frames, dim=0)
    context = call["context"]
    image_only = torch.zeros(videos, frames)

    def conv(name, x, **more):
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], **more)

    h = net.conv_in(call["x"])
    e = F.silu(conv("controlnet_cond_embedding.conv_in", hint, padding=1))
    for i in range(6):
        e = F.silu(conv(f"controlnet_cond_embedding.blocks.{i}", e, padding=1, stride=1 + i % 2))
    h = h + conv("controlnet_cond_embedding.conv_out", e, padding=1)
    skips = [h]
    for block in net.down_blocks:
        more = {"encoder_hidden_states": context} if hasattr(block, "attentions") else {}
        h, new = block(hidden_states=h, temb=emb, image_only_indicator=image_only, **more)
        skips += new
    h = net.mid_block(h, emb, context, image_only)
    return [conv(f"controlnet_down_blocks.{i}", skip) for i, skip in enumerate(skips)] + [conv("controlnet_mid_block", h)]


@pytest.mark.parametrize("frames", [1, 3, 14])
@pytest.mark.slow
def test_residuals_equal_diffusers(file, tensors, frames):
    call = inputs(CONFIG, frames=frames, batch=2)
    call["context"] = call["context"][::frames].repeat_interleave(frames, dim=0)
    ids = torch.tensor([[5.0, 128.0, 0.02], [24.0, 30.0, 0.5]])
    y = torch.stack([torch.cat([formulas.sinusoids(float(number), 256) for number in row]) for row in ids])
    call["y"] = y.repeat_interleave(frames, dim=0)
    call = {name: value.double() for name, value in call.items()}
    hint = torch.rand(2 * frames, 3, 64, 64, dtype=torch.float64) * 2 - 1
    expected = reference({name: value.double() for name, value in tensors.items()}, call, ids, hint, frames)
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-5)):  # the sinusoids are fp32 in both
        net = load(file, dtype)
        same = {name: value.to(dtype) for name, value in call.items()}
        ours = net(same.pop("x"), net.embed_hint(hint.to(dtype)), **same, num_frames=frames)
        assert len(ours) == len(expected) == 13
        assert max(relative_error(a, b) for a, b in zip(ours, expected, strict=True)) <= bound


CONFIG_FILE = {"_class_name": "ControlNetSDVModel", "block_out_channels": [64, 128, 256, 256]}


@pytest.mark.parametrize("config, width", [
    ({"num_attention_heads": [2, 4, 8, 8]}, 32), ({"num_attention_heads": [1, 2, 4, 4]}, 64), ({}, 64),
    ({"num_attention_heads": [2, 4, 8, 8], "_class_name": "ControlNetModel"}, 64), ({"num_attention_heads": [2, 4]}, 64),
    ([1], 64), ("{", 64),
])
def test_the_head_width_is_read_from_the_config_next_to_the_file(file, config, width):
    text = config if isinstance(config, str) else json.dumps({**CONFIG_FILE, **config} if isinstance(config, dict) else config)
    file.with_name("config.json").write_text(text)
    assert open_controlnet(file).config.encoder.head_channels == width


def encoded(**config) -> bytes:
    return json.dumps({**CONFIG_FILE, "num_attention_heads": [2, 4, 8, 8], **config}).encode()


ODD = {  # what stands next to the file as config.json
    "class of a number": encoded(_class_name=5), "no class": encoded(_class_name=None), "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep inside": b'{"_class_name":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no text": b"\xff\xfe\0", "nothing": b"",
    "more heads than channels": encoded(num_attention_heads=[4096] * 4),
    "no heads": encoded(num_attention_heads=[], block_out_channels=[]), "negative": encoded(num_attention_heads=[-2, -4, -8, -8]),
    "parts": encoded(num_attention_heads=[1.5] * 4), "texts": encoded(block_out_channels=["64"] * 4),
    "large": encoded(x=" " * 2**21),
    "no numbers": b'{"_class_name":"ControlNetSDVModel","num_attention_heads":1,"block_out_channels":[NaN]}',
    "huge": b'{"_class_name":"ControlNetSDVModel","num_attention_heads":[1.5],"block_out_channels":[1' + b"0" * 400 + b"]}",
    "a pipe": os.mkfifo, "a folder": os.mkdir, "a link to itself": lambda path: path.symlink_to("config.json"),
    "no end": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_config_of_something_else_is_no_matter(file, name):
    path, content = file.with_name("config.json"), ODD[name]
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    assert open_controlnet(file).config.encoder.head_channels == 64


def test_heads_of_unlike_widths_are_refused(file):
    file.with_name("config.json").write_text(json.dumps({**CONFIG_FILE, "num_attention_heads": [1, 2, 2, 4]}))
    found = r"^depth.safetensors: config.json next to it counts .* widths \[64, 128\], expected one"
    with pytest.raises(UNetFileError, match=found):
        open_controlnet(file)


@pytest.mark.slow
def test_residuals_fit_the_unet_and_steer_it(file):
    unet = UNetModel(CONFIG, device="meta")
    unet.load_state_dict(random_weights(CONFIG), assign=True)
    unet.requires_grad_(False).eval()
    net = load(file)
    call = inputs(CONFIG, frames=2)
    residuals = net(hint=net.embed_hint(torch.rand(2, 3, 64, 64)), **call)
    assert relative_error(unet(**call, controls=residuals), unet(**call)) > 1e-2


def test_a_net_without_attention_takes_no_context(tmp_path):
    """A miniature may leave the transformers out of its input blocks and have a single residual block in its middle."""
    config = replace(CONFIG, depth_in=(0,) * 8, depth_out=(0,) * 12, depth_middle=0, context_dim=None)
    tensors = public_tensors(config)
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "small.safetensors")
    net = load(tmp_path / "small.safetensors")
    call = inputs(CONFIG, frames=2)
    with_context = net(hint=net.embed_hint(torch.rand(2, 3, 64, 64)), **call)
    assert len(with_context) == 13


def test_the_public_nets_at_full_size_are_known():
    """Depth and lineart: 682 M parameters (files of 2.7 GB in fp32), 12 + 1 residuals, hint net 16-32-96-256."""
    config = ControlNetConfig(replace(FULL["svd"], out_channels=0, depth_out=()), 3, (16, 32, 96, 256))
    own = {name: tuple(t.shape) for name, t in SVDControlNet(config, device="meta").state_dict().items()}
    public = {name if name.startswith("controlnet_") else to_diffusers(name): shape for name, shape in own.items()}
    names = to_ldm(public)
    assert read_controlnet_config({name: public[on_disk] for name, on_disk in names.items()}) == config
    assert set(names) == set(own)
    assert sum(torch.Size(shape).numel() for shape in own.values()) // 10**6 == 682


def test_a_file_that_lacks_a_part_is_refused(tensors, tmp_path):
    cut = {name: value for name, value in tensors.items() if not name.startswith("controlnet_down_blocks.11.")}
    save_file({name: value.contiguous() for name, value in cut.items()}, tmp_path / "cut.safetensors")
    with pytest.raises(UNetFileError, match="cut.safetensors: it has 11 controlnet_down_blocks, but down_blocks for 12"):
        open_controlnet(tmp_path / "cut.safetensors")


def test_a_file_that_lacks_a_tensor_is_refused(tensors, tmp_path):
    cut = {name: value.contiguous() for name, value in tensors.items() if name != "conv_in.bias"}
    save_file(cut, tmp_path / "cut.safetensors")
    with pytest.raises(UNetFileError, match=r"cut.safetensors: of the \d+ tensors that this ControlNet needs, 1 missing"):
        open_controlnet(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "gone", ["down_blocks.0.", "down_blocks.1.", "down_blocks.3.", "mid_block.", "conv_in.", "controlnet_cond_"]
)
def test_a_file_that_lacks_a_whole_level_is_refused(tensors, tmp_path, gone):
    cut = {name: value.contiguous() for name, value in tensors.items() if not name.startswith(gone)}
    save_file(cut, tmp_path / "cut.safetensors")
    with pytest.raises(UNetFileError, match="^cut.safetensors: "):
        open_controlnet(tmp_path / "cut.safetensors")


def test_another_file_is_distinguished(file, tmp_path):
    with pytest.raises(UNetFileError, match="it holds a ControlNet, not a UNet"):
        open_checkpoint(file)
    save_file(random_weights(CONFIG), tmp_path / "unet.safetensors")
    with pytest.raises(UNetFileError, match="unet.safetensors: it holds no SVD ControlNet"):
        open_controlnet(tmp_path / "unet.safetensors")


# without layers over time

SPATIAL = replace(CONFIG, temporal=False)


def spatial_tensors(config=SPATIAL, seed=3):
    """A random ControlNet in the layout of diffusers' ControlNetModel, which is also SVD's where it has no temporal layers."""
    return {name.replace(".spatial_res_block.", "."): value for name, value in public_tensors(config, seed).items()}


def spatial_reference(config, tensors):
    """diffusers' own ControlNetModel with these weights."""
    import diffusers

    motion = {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 768, "addition_time_embed_dim": 256}
    net = diffusers.ControlNetModel(
        in_channels=config.in_channels, block_out_channels=(64, 128, 256, 256), layers_per_block=2, cross_attention_dim=1024,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), attention_head_dim=(1, 2, 4, 4),
        use_linear_projection=True, conditioning_embedding_out_channels=WIDTHS, **(motion if config.adm_channels else {}),
    )
    net.load_state_dict(tensors)
    return net.requires_grad_(False).eval()


@pytest.mark.parametrize("channels, adm", [(8, 768), (8, None), (4, 768)])
@pytest.mark.slow
def test_a_spatial_only_net_equals_diffusers(tmp_path, channels, adm):
    """Latent with or without the image next to it, with or without SVD's vector condition."""
    config = replace(SPATIAL, in_channels=channels, adm_channels=adm)
    tensors = {name: value.contiguous() for name, value in spatial_tensors(config).items()}
    save_file(tensors, tmp_path / "spatial.safetensors")
    assert find_controlnet(tmp_path / "spatial.safetensors") is SVDControlNet
    net = load(tmp_path / "spatial.safetensors")
    assert net.config.temporal is False
    call = inputs(replace(config, adm_channels=None), frames=3, batch=2)
    ids = torch.tensor([[5.0, 128.0, 0.02], [24.0, 30.0, 0.5]]).repeat_interleave(3, dim=0)
    y = torch.stack([torch.cat([formulas.sinusoids(float(number), 256) for number in row]) for row in ids]).float()
    hint = torch.rand(6, 3, 64, 64) * 2 - 1
    down, middle = spatial_reference(config, tensors)(
        call["x"], call["timesteps"], call["context"], hint, return_dict=False,
        added_cond_kwargs={"text_embeds": torch.zeros(6, 0), "time_ids": ids} if adm else None,
    )
    x = call.pop("x")
    ours = net(x[:, :4], net.embed_hint(hint), **call, y=y, c_concat=x[:, 4:] if channels == 8 else torch.rand(6, 4, 8, 8),
               num_frames=3)
    assert max(relative_error(a, b) for a, b in zip(ours, [*down, middle], strict=True)) <= 1e-5


def test_a_spatial_only_net_sees_each_frame_by_itself(tmp_path):
    tensors = {name: value.contiguous() for name, value in spatial_tensors().items()}
    save_file(tensors, tmp_path / "spatial.safetensors")
    net, call = load(tmp_path / "spatial.safetensors"), inputs(SPATIAL, frames=3)
    hint = net.embed_hint(torch.rand(3, 3, 64, 64))
    whole = net(hint=hint, num_frames=3, **call)
    frame = net(hint=hint[1:2], num_frames=1, **{name: value[1:2] for name, value in call.items()})
    assert max(relative_error(a[1:2], b) for a, b in zip(whole, frame, strict=True)) <= 1e-5


@pytest.mark.parametrize("channels, adm, context", [(4, None, 1024), (4, None, 768), (4, 2816, 2048), (8, 2816, 2048)])
def test_the_nets_of_image_models_are_left_to_the_host(tmp_path, channels, adm, context):
    config = replace(SPATIAL, in_channels=channels, adm_channels=adm, context_dim=context)
    save_file({name: value.contiguous() for name, value in spatial_tensors(config).items()}, tmp_path / "image.safetensors")
    assert find_controlnet(tmp_path / "image.safetensors") is None
    with pytest.raises(UNetFileError, match="image.safetensors: it holds no SVD ControlNet"):
        open_controlnet(tmp_path / "image.safetensors")


LOSSES = ["down_blocks.1.", "down_blocks.3.resnets.0.norm1.", "controlnet_down_blocks.4.", "controlnet_cond_"]


@pytest.mark.parametrize("gone", LOSSES)
def test_a_damaged_spatial_only_file_is_refused(tmp_path, gone):
    cut = {name: value.contiguous() for name, value in spatial_tensors().items() if not name.startswith(gone)}
    save_file(cut, tmp_path / "cut.safetensors")
    with pytest.raises(UNetFileError, match="^cut.safetensors: "):
        open_controlnet(tmp_path / "cut.safetensors")
