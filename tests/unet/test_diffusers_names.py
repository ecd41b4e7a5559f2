"""The map between diffusers' names and ours: all of every family, against diffusers' own networks."""

import pytest

from support.families import TINY
from unet import UNetModel
from unet.weights.diffusers_names import diffusers_layers, to_ldm


def own_shapes(config):
    return {name: tuple(tensor.shape) for name, tensor in UNetModel(config, device="meta").state_dict().items()}


def renamed(config) -> dict[str, str]:
    """Our names to diffusers', by the layers of the config."""
    layers = diffusers_layers(config)
    split = {name: name.rpartition(".") for name in own_shapes(config)}
    return {name: f"{layers[layer]}.{parameter}" for name, (layer, _, parameter) in split.items()}


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("name", TINY)
def test_names_and_shapes_are_those_of_diffusers_own_network(name):
    from support.diffusers_models import diffusers_network

    config = TINY[name]
    theirs = {key: tuple(tensor.shape) for key, tensor in diffusers_network(config).state_dict().items()}
    names = to_ldm(theirs)
    assert {own: theirs[on_disk] for own, on_disk in names.items()} == own_shapes(config)
    assert names == renamed(config)  # back to diffusers, exactly


@pytest.mark.parametrize("suffix", ["scale_weight", "comfy_quant", "lora_up.weight", "lora_A.default.weight", "weight.absmax"])
def test_what_follows_a_layer_stays(suffix):
    layers = diffusers_layers(TINY["svd"])
    names = to_ldm([f"{layer}.{suffix}" for layer in layers.values()])
    assert names == {f"{own}.{suffix}": f"{layer}.{suffix}" for own, layer in layers.items()}


def test_the_order_of_the_names_does_not_matter():
    names = renamed(TINY["koala_1b"])
    assert to_ldm(sorted(names.values(), reverse=True)) == names


@pytest.mark.parametrize("name", [
    "down_blocks.7.resnets.0.conv1.weight", "down_blocks.0.motion_modules.0.x", "down_blocks." + "9" * 5000 + ".resnets.0.x",
    "mid_block.attentions.7.x", "up_blocks.0.resnetsx", "conv_input.x", "time_embedding.cond_proj.weight", "",
])
def test_a_name_that_is_of_no_layer_stands_for_itself(name):
    names = renamed(TINY["sd1_tiny"])
    assert to_ldm([*names.values(), name]) == {**names, name: name}


def test_the_second_name_of_one_layer_stands_for_itself():
    """A network with both kinds of vector conditions is none of the family."""
    both = ["add_embedding.linear_1.weight", "class_embedding.linear_1.weight"]
    assert to_ldm(both) == {"label_emb.0.0.weight": both[0], both[1]: both[1]}
