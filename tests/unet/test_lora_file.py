"""LoRA files that cannot be used, each refused in one sentence that names the file, and those that look odd and are sound."""

import json

import pytest
import torch
from safetensors.torch import save_file

from unet import UNetFileError
from unet.weights.lora_file import open_lora
from unet.weights.lora_shapes import fits

PATH = "unet.mid_block.attentions.0.proj_in"
PAIR = {f"{PATH}.lora.up.weight": torch.ones(8, 2), f"{PATH}.lora.down.weight": torch.ones(2, 8)}
BLOCKS = {f"{side}_blocks.1.0.weight": torch.ones(1) for side in ("input", "output")}

REFUSED = {  # what is in the file -> what the error says, besides the file's name
    "nothing": ({}, ["holds no LoRA (found 0 tensors"]),
    "other tensors": ({"weight": torch.ones(1)}, ["holds no LoRA (found 1 tensors such as weight", "Choose a LoRA file"]),
    "a UNet": (BLOCKS, ["a UNet, not a LoRA", "Load UNet"]),
    "a VAE": ({"encoder.alpha": torch.ones(1), "decoder.x": torch.ones(1)}, ["a VAE, not a LoRA"]),
    "a checkpoint": (
        {"cond_stage_model.x.weight": torch.ones(1), **{f"model.diffusion_model.{name}": value for name, value in BLOCKS.items()}},
        ["a UNet, not a LoRA"],
    ),
    "layers by their place": ({"unet:0:up": torch.ones(8, 2), "unet:0:down": torch.ones(2, 8)}, ["counted, not named"]),
    "half of a pair": ({f"{PATH}.lora.up.weight": torch.ones(8, 2)}, ["attentions.0.proj_in has no lora_down.weight"]),
    "a part of a LoHa": ({f"{PATH}.hada_w1_a": torch.ones(8, 2)}, ["has no hada_w1_b"]),
    "one core of two": (
        {f"{PATH}.hada_{name}": torch.ones(2, 2) for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1")}, ["has no hada_t2"],
    ),
    "a layer twice": ({**PAIR, f"lora_unet_{PATH[5:]}.lora_up.weight": torch.ones(8, 2)}, ["are for the same layer"]),
    "two kinds": ({**PAIR, f"{PATH}.diff": torch.ones(8, 8)}, ["in two ways at once (LoRA and diff)"]),
    "an alpha of many": ({**PAIR, f"{PATH}.alpha": torch.ones(3)}, ["alpha", "shape [3], expected one value"]),
    "integers": ({name: value.int() for name, value in PAIR.items()}, ["I32, expected floating-point numbers"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sound_lora_is_refused_in_words(tmp_path, name):
    tensors, expected = REFUSED[name]
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(UNetFileError) as caught:
        open_lora(tmp_path / "l.safetensors")
    assert str(caught.value).startswith("l.safetensors: ") and [part for part in expected if part not in str(caught.value)] == []


@pytest.mark.parametrize("found", [[torch.ones(2, 2)] * 4, (torch.ones(2, 2),)])
def test_a_list_of_tensors_is_refused_in_words(tmp_path, found):
    torch.save(found, tmp_path / "l.pt")
    with pytest.raises(UNetFileError, match="l.pt: it holds a list of tensors without names, as I2VEdit .*Which layers these"):
        open_lora(tmp_path / "l.pt")


@pytest.mark.parametrize("text", ["", "[]", '{"unet.lora_alpha": NaN}', "[" * 100_000, '{"unet.lora_alpha": 1' + "0" * 400 + "}"])
def test_settings_that_cannot_be_read_are_refused(tmp_path, text):
    """Without them the alpha would be taken for the rank silently."""
    save_file(PAIR, tmp_path / "l.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(UNetFileError, match="^l.safetensors: .*alpha.*Get the file again"):
        open_lora(tmp_path / "l.safetensors")


@pytest.mark.parametrize("settings", [
    {}, {"unet.lora_alpha": "8"}, {"unet.lora_alpha": None}, {"unet.lora_alpha": True}, {"text_encoder.lora_alpha": 8},
])
def test_settings_without_an_alpha_leave_it_open(tmp_path, settings):
    save_file(PAIR, tmp_path / "l.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    [layer] = (lora := open_lora(tmp_path / "l.safetensors")).layers
    assert lora.lacks_alpha(layer) and "alpha" not in lora.read(layer)


@pytest.mark.parametrize("patterns", [None, [], {"proj_in": "x"}, {"other": 3}])
def test_odd_patterns_of_alpha_are_not_followed(tmp_path, patterns):
    settings = {"lora_alpha": 8, "alpha_pattern": patterns}
    save_file(PAIR, tmp_path / "l.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    [layer] = (lora := open_lora(tmp_path / "l.safetensors")).layers
    assert lora.read(layer)["alpha"] == 8


def test_keys_for_a_text_encoder_and_unknown_ones_are_counted(tmp_path):
    others = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "text_encoder_2.text_model.x.lora_A.weight", "lora_te_x.y"}
    unknown = {f"{PATH}.lora_B.bias", "lora_unet_x.alpha", "bundle_emb.x.string_to_param.*"}
    save_file({**PAIR, **{key: torch.ones(1) for key in others | unknown}}, tmp_path / "l.safetensors")
    lora = open_lora(tmp_path / "l.safetensors")
    assert (set(lora.text_encoder), set(lora.unknown), list(lora.layers)) == (others, unknown, ["mid_block.attentions.0.proj_in"])


def test_what_was_read_stays_as_it_was(tmp_path):
    save_file(PAIR, path := tmp_path / "l.safetensors")
    lora = open_lora(path)
    tensors = lora.read("mid_block.attentions.0.proj_in")
    path.write_bytes(bytes(path.stat().st_size))
    assert tensors["lora_up.weight"].equal(torch.ones(8, 2))


@pytest.mark.parametrize("shapes, weight", [
    ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8)}, (16, 4)),  # as many values
    ({"lora_up.weight": (8, 2), "lora_down.weight": (3, 8)}, (8, 8)),
    ({"lora_up.weight": (8, 0), "lora_down.weight": (0, 8)}, (8, 8)),
    ({"lora_up.weight": (), "lora_down.weight": (8,)}, (8, 8)),
    ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8)}, (8,)),
    ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "lora_mid.weight": (2, 3, 3, 3)}, (8, 8, 3, 3)),
    ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "dora_scale": (7,)}, (8, 8)),
    ({"lora_up.weight": (8, 2), "lora_down.weight": (2, 8), "diff_b": (7,)}, (8, 8)),
    ({"lokr_w1": (2, 4), "lokr_w2": (4, 4)}, (8, 8)),
    ({"lokr_w1": (), "lokr_w2": ()}, (8, 8)),
    ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (3, 8)}, (8, 8)),
    ({"a1.weight": (8, 2), "a2.weight": (2, 9), "b1.weight": (8, 2), "b2.weight": (2, 8)}, (8, 8)),
    ({"oft_blocks": (2, 3, 3)}, (8, 8)),
    ({"oft_blocks": (8,)}, (8, 8)),
    ({"diff": (8, 8, 1, 1)}, (8, 8)),
    ({"w_norm": (7,)}, (8,)),
])
def test_parameters_of_other_shapes_do_not_fit(shapes, weight):
    assert not fits(shapes, weight, weight[:1])
