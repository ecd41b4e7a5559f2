"""Which UNet is in a file: every row of the family table, and what is reported of files that hold none."""

import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from support.families import FULL, PREFIX, TINY, inputs, write_unet
from unet import FAMILIES, UNetFileError, UNetModel, detect, load_unet, open_checkpoint

MARKERS = {"zero123": {"cc_projection.weight": (768, 772)}}
HEADS = "temporal_unet.head_channels"


def shapes(config, prefix=PREFIX):
    """Names and shapes of this network's tensors, as a file has them."""
    return {prefix + name: shape for name, shape in _shapes(config).items()}


@cache
def _shapes(config):
    return {name: tuple(tensor.shape) for name, tensor in UNetModel(config, device="meta").state_dict().items()}


@pytest.mark.parametrize("prefix", [PREFIX, ""], ids=["usual", "none"])
@pytest.mark.parametrize("name", TINY)
def test_every_family_is_detected_from_its_shapes(name, prefix):
    config, family, _ = detect(shapes(TINY[name], prefix) | MARKERS.get(name, {}))
    assert (family.name, config) == (name, TINY[name])


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "unet.", ""])
def test_any_usual_prefix_is_found(prefix):
    _, family, names = detect(shapes(TINY["svd"], prefix) | {"first_stage_model.decoder.conv_in.weight": (1,)})
    assert family.name == "svd"
    assert names == {name: prefix + name for name in shapes(TINY["svd"], "")} | (
        {} if prefix else {"first_stage_model.decoder.conv_in.weight": "first_stage_model.decoder.conv_in.weight"}
    )


@pytest.mark.parametrize("prefix", [PREFIX, ""], ids=["usual", "none"])
@pytest.mark.parametrize("name", FULL)
def test_the_full_networks_are_detected_from_their_shapes(name, prefix):
    config, family, names = detect(shapes(FULL[name], prefix))
    assert (family.name, config) == (name, FULL[name])
    assert names == {key: prefix + key for key in shapes(FULL[name], "")}


def test_the_table_of_test_networks_covers_every_family():
    assert {family.name for family in FAMILIES} == set(TINY)


@pytest.mark.parametrize("channels", [64, 128])
def test_a_miniature_is_of_the_family_of_the_real_thing(channels):
    config, family, _ = detect(shapes(replace(FULL["svd"], model_channels=channels)))
    assert (family.name, config.model_channels, config.head_channels) == ("svd", channels, 64)


def test_a_miniature_names_its_head_width_in_the_metadata():
    miniature = replace(FULL["svd"], model_channels=32, head_channels=8)
    config, family, _ = detect(shapes(miniature), {HEADS: "8"})
    assert (family.name, config) == ("svd", miniature)


def test_a_head_width_that_does_not_divide_a_level_is_an_error_that_names_the_metadata():
    with pytest.raises(UNetFileError, match=rf"level 0 is 32 channels wide.*64.*{re.escape(HEADS)}"):
        detect(shapes(replace(FULL["svd"], model_channels=32, head_channels=8)))


@pytest.mark.parametrize("value", ["0", "-8", "wide", ""])
def test_a_head_width_that_is_no_width_is_an_error_that_names_it(value):
    with pytest.raises(UNetFileError) as error:
        detect(shapes(TINY["svd"]), {HEADS: value})
    assert HEADS in str(error.value) and value in str(error.value)


def test_zero123_is_distinguished_from_instruct_pix2pix_by_its_marker():
    plain = shapes(TINY["zero123"])
    assert detect(plain)[1].name == "sd1_ip2p"
    assert detect(plain | MARKERS["zero123"])[1].name == "zero123"


def gapped(name):
    """The name of a tensor of a tiny model as stable-diffusion.cpp has it: blocks 1, 3, 4, 6, 7, an upsampling alone in its own."""
    found = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.*)", name)
    if not found:
        return name
    kind, block, layer, rest = found[1], int(found[2]), found[3], found[4]
    if kind == "input":
        return f"input_blocks.{[0, 1, 3, 4, 6, 7][block]}.{layer}.{rest}"
    if rest.startswith("conv."):
        return f"output_blocks.{'2.1' if block == 1 else '5.2'}.{rest}"
    return f"output_blocks.{[0, 1, 3, 4, 6, 7][block]}.{layer}.{rest}"


@pytest.mark.parametrize("name", ["sd1_tiny", "sd2_tiny"])
def test_gapped_block_indices_are_the_same_network(name):
    contiguous = shapes(TINY[name])
    on_disk = {PREFIX + gapped(key[len(PREFIX):]): shape for key, shape in contiguous.items()}
    numbers = {kind: sorted({int(n) for n in re.findall(rf"{kind}_blocks\.(\d+)\.0\.", " ".join(on_disk))})
               for kind in ("input", "output")}
    assert numbers == {"input": [0, 1, 3, 4, 6, 7], "output": [0, 1, 3, 4, 6, 7]}
    assert {PREFIX + "output_blocks.2.1.conv.weight", PREFIX + "output_blocks.5.2.conv.weight"} <= set(on_disk)

    config, family, names = detect(on_disk)
    assert (family.name, config) == (name, TINY[name])
    assert names == {key[len(PREFIX):]: PREFIX + gapped(key[len(PREFIX):]) for key in contiguous}


@pytest.mark.parametrize("name", ["sd1_tiny", "sd2_tiny"])
def test_a_gapped_file_computes_what_the_contiguous_one_does(name, tmp_path):
    weights = write_unet(tmp_path / "contiguous.safetensors", TINY[name])
    save_file({PREFIX + gapped(key): value for key, value in weights.items()}, tmp_path / "gapped.safetensors")
    assert open_checkpoint(tmp_path / "gapped.safetensors").unexpected == []
    call = inputs(TINY[name], batch=2)
    expected = load_unet(tmp_path / "contiguous.safetensors")(**call)
    assert torch.equal(load_unet(tmp_path / "gapped.safetensors")(**call), expected)


OTHERS = {
    "kohya LoRA": (
        {"lora_unet_input_blocks_1_1_proj_in.lora_down.weight": (4, 320), "lora_unet_x.alpha": ()},
        "LoRA", "LoRA loader",
    ),
    "PEFT LoRA": (
        {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (4, 320)}, "LoRA", "LoRA loader",
    ),
    "ComfyUI's LoRA": (  # what its node Extract and Save Lora writes
        {f"diffusion_model.{kind}_blocks.4.1.proj_in.lora_{way}.weight": (4, 640)
         for kind in ("input", "output") for way in ("up", "down")},
        "LoRA", "LoRA loader",
    ),
    "VAE": ({"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}, "VAE", "Load VAE"),
    "VAE of a checkpoint": ({"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}, "VAE", "Load VAE"),
    "diffusers VAE": ({"decoder.up_blocks.0.resnets.0.conv1.weight": (512, 512, 3, 3)}, "VAE", "Load VAE"),
    "ldm ControlNet": (
        {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3),
         "control_model.zero_convs.0.0.weight": (320, 320, 1, 1)},
        "ControlNet", "ControlNet loader",
    ),
    "bare ldm ControlNet": (
        {"input_blocks.0.0.weight": (320, 4, 3, 3), "input_hint_block.0.weight": (16, 3, 3, 3),
         "zero_convs.0.0.weight": (320, 320, 1, 1)},
        "ControlNet", "ControlNet loader",
    ),
    "diffusers ControlNet": (
        {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
         "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
        "ControlNet", "ControlNet loader",
    ),
    "half of a diffusers UNet": (
        {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}, "a part of a UNet in diffusers' layout", "other files",
    ),
    "damaged diffusers UNet": (
        {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3),
         "up_blocks.0.resnets.0.conv1.weight": (1280, 2560, 3, 3)},
        "input_blocks.0.0.weight is missing", "damaged",
    ),
    "text-to-video UNet": (
        {f"{way}_blocks.0.{layer}.x": (4,) for way in ("down", "up") for layer in ("resnets.0.conv1", "temp_convs.0.conv1")},
        "a text-to-video UNet", "nodes for that model",
    ),
    "UNet with motion modules": (
        {f"{way}_blocks.0.{layer}.x": (4,) for way in ("down", "up") for layer in ("resnets.0.conv1", "motion_modules.0.norm")},
        "motion module", "AnimateDiff nodes",
    ),
    "diffusers LoRA": (
        {f"unet.{way}_blocks.0.resnets.0.conv1.lora.{side}.weight": (4, 4) for way in ("down", "up") for side in ("down", "up")},
        "LoRA", "LoRA loader",
    ),
    "old diffusers LoRA": (
        {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": (4, 4)}, "LoRA", "LoRA loader",
    ),
    "diffusers DiT": ({"single_transformer_blocks.0.attn.to_q.weight": (4, 4)}, "DiT", "Load Diffusion Model"),
    "motion module": (
        {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (320,)},
        "motion module", "AnimateDiff nodes",
    ),
    "CLIP": ({"text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768)}, "encoder", "CLIP"),
    "CLIP Vision": ({"vision_model.encoder.layers.0.mlp.fc1.weight": (5120, 1280)}, "encoder", "CLIP Vision"),
    "OpenCLIP": ({"transformer.resblocks.0.ln_1.weight": (1024,)}, "encoder", "CLIP"),
    "T5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}, "encoder", "CLIP"),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "DiT", "Load Diffusion Model"),
    "SD3": ({PREFIX + "joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}, "DiT", "Load Diffusion Model"),
    "another family's checkpoint": (
        {PREFIX + "blocks.0.self_attn.q_proj.weight": (4, 4), "first_stage_model.encoder.conv1.weight": (4, 4),
         "cond_stage_model.qwen.transformer.x": (4, 4)},
        "a model of another family", "Load Checkpoint",
    ),
    "audio model with its VAE": (
        {"model.model.transformer.layers.0.to_q.weight": (4, 4), "pretransform.model.encoder.x": (4,), "encoder.x": (4,)},
        "a model of another family", "Load Checkpoint",
    ),
    "checkpoint without its output blocks": (
        {PREFIX + "input_blocks.0.0.weight": (320, 4, 3, 3), "first_stage_model.decoder.conv_in.weight": (4, 4)},
        "a part of a UNet", "damaged",
    ),
    "something else": ({"layers.0.mlp.weight": (8, 8)}, "layers.0.mlp.weight", "Supported: Stable Video Diffusion"),
    "nothing": ({}, "found 0 tensors;", "Supported: Stable Video Diffusion"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_kind_is_an_error_that_names_the_kind_and_what_to_do(name):
    found, kind, advice = OTHERS[name]
    with pytest.raises(UNetFileError) as error:
        detect(found)
    assert kind in str(error.value) and advice in str(error.value), str(error.value)


@pytest.mark.parametrize(
    "config, found",
    [
        (replace(TINY["svd"], in_channels=4), "in 4,"), (replace(TINY["svd"], adm_channels=512), "condition 512"),
        (replace(TINY["sd1"], in_channels=5), "in 5,"), (replace(TINY["sd2"], adm_channels=100), "condition 100"),
    ],
    ids=["SVD of 4 channels", "SVD of another condition", "SD1 of 5 channels", "SD2 of another condition"],
)
def test_an_unknown_member_is_an_error_that_says_what_was_found_and_is_supported(config, found):
    with pytest.raises(UNetFileError) as error:
        detect(shapes(config))
    assert found in str(error.value) and "Supported: Stable Video Diffusion" in str(error.value)


@pytest.mark.parametrize(
    "missing, named",
    [
        ("input_blocks.0.0.weight", "input_blocks.0.0.weight"), ("out.2.weight", "out.2.weight"),
        ("input_blocks.3.", "input_blocks.3 "),
        ("input_blocks.4.0.out_layers.3.weight", "input_blocks.4.0.out_layers.3.weight"),
        ("middle_block.0.", "middle_block.0"),
    ],
)
def test_a_damaged_unet_is_an_error_that_names_the_missing_tensor(missing, named):
    damaged = {name: shape for name, shape in shapes(TINY["sd1"], "").items() if not name.startswith(missing)}
    with pytest.raises(UNetFileError, match=re.escape(named) + ".*(missing|damaged)"):
        detect(damaged)


@pytest.mark.parametrize(
    "name",
    ["input_blocks.0.0.weight", "label_emb.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight",
     "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"],
)
def test_a_tensor_of_one_dimension_where_two_are_due_is_an_error_that_names_it(name):
    with pytest.raises(UNetFileError, match=re.escape(name)):
        detect(shapes(TINY["svd"], "") | {name: (64,)})
