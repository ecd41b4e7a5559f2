"""What other packs do to a MODEL or ask of its network: as on the host's own."""

import pytest
import torch

from support.families import TINY, random_weights, relative_error
from support.oracle import CPU, ROWS, SMALL, Pair, host_unet, prompts, sample
from unet import UNetModel

FIRST = "input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def sd1(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("packs"), "sd1")


def widened(model, concat_channels=4):
    """The MODEL as IC-Light, LayerDiffuse and PIA change it: a patch widens the first convolution, a wrapper gives c_concat."""
    model, generator = model.clone(), torch.Generator().manual_seed(3)
    wide = 0.1 * torch.randn(SMALL["sd1"].model_channels, 8, 3, 3, generator=generator)
    model.add_patches({f"diffusion_model.{FIRST}": ("diff", [wide, {"pad_weight": True}])})
    extra = torch.randn(1, concat_channels, 8, 8, generator=generator)

    def with_extra(apply_model, call):
        rows = call["input"].shape[0]
        return apply_model(call["input"], call["timestep"], **{**call["c"], "c_concat": extra.repeat(rows, 1, 1, 1)})

    model.set_model_unet_function_wrapper(with_extra)
    return model


def test_a_first_convolution_widened_by_a_patch_equals_the_hosts(sd1):
    ours, host = (sample(widened(model), *prompts(SMALL["sd1"])) for model in sd1)
    assert relative_error(ours, host) <= 1e-4
    assert relative_error(ours, sample(sd1.ours, *prompts(SMALL["sd1"]))) > 1e-2


def test_a_first_convolution_widened_as_it_is_cast_equals_one_widened_in_place(sd1):
    """Low-VRAM mode: the weight on the module is as narrow as ever, and the patch is applied at each call."""
    model = widened(sd1.ours)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    call = {
        "c_crossattn": prompts(SMALL["sd1"])[0][0][0].repeat(2, 1, 1), "c_concat": x.flip(0),
        "transformer_options": {"cond_or_uncond": [0]},
    }
    results = []
    for loading in ({"lowvram_model_memory": 1}, {"full_load": True}):
        model.detach()
        model.load(CPU, **loading)
        results.append(model.model.apply_model(x, torch.full((2,), 0.7), **call))
        if "full_load" not in loading:
            assert model.model.diffusion_model.input_blocks[0][0].weight.shape[1] == 4
    model.detach()
    assert relative_error(*results) <= 1e-5


def test_a_widened_first_convolution_says_how_many_channels_it_takes(sd1):
    with pytest.raises(ValueError, match="The UNet takes 8 input channels .*, found 10"):
        sample(widened(sd1.ours, concat_channels=6), *prompts(SMALL["sd1"]))


@pytest.mark.parametrize("name", ["sd1", "unclip_l", "x4_upscaler", "svd"])
def test_packs_that_ask_whether_there_is_a_label_embedding_get_the_hosts_answer(name):
    host = host_unet(random_weights(TINY[name]), ROWS[name])
    assert hasattr(UNetModel(TINY[name], device="meta"), "label_emb") == hasattr(host, "label_emb")
