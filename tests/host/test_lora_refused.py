"""Load LoRA (SVD and all): what does not act is counted and named, and where nothing does it is an error."""

import pytest
import torch

from support.loras import diffusers_paths, factors, keys, loader, weights_of
from support.oracle import SMALL, Pair
from unet import UNetModel

PROJ_IN = "unet.mid_block.attentions.0.proj_in"


@pytest.fixture(scope="module")
def models(pack, tmp_path_factory):
    return {name: Pair(pack, tmp_path_factory.mktemp("unets"), name).ours for name in ("sd1", "svd")}


@pytest.fixture
def load(node, tmp_path, monkeypatch):
    return loader(node, tmp_path, monkeypatch)


def attention_lora(config, host_config) -> dict:
    """Keys and tensors for all attention of an image model, with kohya's names."""
    shapes = {name: tensor.shape for name, tensor in UNetModel(config, device="meta").state_dict().items()}
    tensors, generator = {}, torch.Generator().manual_seed(4)
    for own, theirs in diffusers_paths(config, host_config).items():
        if ".attn" in own:
            up_key, down_key, _ = keys("kohya", own, theirs)
            tensors[up_key], tensors[down_key] = factors(shapes[f"{own}.weight"], 2, generator)
    return tensors


def test_a_lora_of_another_family_acts_where_it_fits_and_the_info_counts_the_rest(pack, models, load, caplog):
    config = SMALL["sdxl"]
    tensors = attention_lora(config, pack("nodes.bridge.model.unet_loader").host_config(config))
    patched, info = load(models["sd1"], {**tensors, "lora_te1_x.alpha": torch.ones(()), "odd": torch.ones(1)})
    lines = info.split("\n")
    reached = len(patched.patches)
    assert 0 < reached < len(tensors) // 2 and f"acts on {reached} of its {len(tensors) // 2} layers" in lines[1]
    rest = (" layers that this model does not have ", " layers of another shape ")
    left_out = [int(line.split(" layers ")[0]) for line in lines if any(words in line for words in rest)]
    assert len(left_out) == 2 and sum(left_out) + reached == len(tensors) // 2
    assert "(down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k, " in info
    assert ", …): the LoRA was made for another model" in info
    assert "1 keys for the text encoder were left out: use Load LoRA (Model and CLIP) for them" in lines
    assert "1 tensors of an unknown kind were left out (odd)" in lines
    assert "not loaded" not in caplog.text and not [record for record in caplog.records if record.levelname == "ERROR"]
    weights_of(patched)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]  # the host multiplies only what fits


@pytest.mark.parametrize("tensors, says", [
    ({"lora_unet_double_blocks_0_img_attn_proj.diff": torch.ones(2)},
     ["none of its 1 layers", "1 that this model does not have (double_blocks_0"]),
    ({f"{PROJ_IN}.diff": torch.ones(2)}, ["none of its 1 layers", "1 of another shape (mid_block.attentions.0.proj_in"]),
    ({f"{PROJ_IN}.lokr_{name}": torch.ones(2, 2) for name in ("w1", "w2_a", "w2_b", "t2")},
     ["1 of LoKr with lokr_t2, which ComfyUI cannot compute"]),
    ({"lora_te_x.alpha": torch.ones(())}, ["1 keys for a text encoder and none for a UNet", "Load LoRA (Model and CLIP)"]),
    ({f"{path}.diff": torch.ones(2) for path in (PROJ_IN, "diffusion_model.middle_block.1.proj_in")},
     ["are for the same layer", f"{PROJ_IN}.diff", "diffusion_model.middle_block.1.proj_in.diff"]),
    ([torch.ones(2, 2)], ["a list of tensors without names"]),
])
def test_a_file_of_which_nothing_can_act_is_an_error(models, load, tensors, says):
    with pytest.raises(ValueError) as caught:
        load(models["svd"], tensors, name="l.safetensors" if isinstance(tensors, dict) else "l.pt")
    assert str(caught.value).startswith("l.") and [part for part in says if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_strength_0_leaves_the_model_as_it_is(models, load):
    model = models["sd1"]
    assert load(model, {}, strength=0.0) == (model, "strength 0: the model is unchanged")
    with pytest.raises(ValueError, match="strength_model is NaN"):
        load(model, {}, strength=float("nan"))


def test_a_model_of_another_family_is_refused_with_the_node_to_use(load):
    class Other:
        class model:
            diffusion_model = torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match="the network of this MODEL is Linear, expected a UNet .* Use ComfyUI's node Load LoRA"):
        load(Other, {f"{PROJ_IN}.diff": torch.ones(2)})
