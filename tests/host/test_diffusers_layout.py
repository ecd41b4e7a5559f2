"""Files in diffusers' layout: the names that the host has for them, and the MODEL that comes of them."""

import comfy.utils
import pytest

from support.families import TINY
from unet.weights.diffusers_names import diffusers_layers


@pytest.mark.parametrize("name", [name for name, config in TINY.items() if not config.temporal])
def test_layers_of_images_have_the_names_that_the_host_has(pack, name):
    host_config = pack("nodes.bridge.model.unet_loader").host_config(TINY[name])
    ours = {theirs: own for own, theirs in diffusers_layers(TINY[name]).items()}
    host = {theirs.rpartition(".")[0]: own.rpartition(".")[0] for theirs, own in comfy.utils.unet_to_diffusers(host_config).items()}
    assert {theirs: host[theirs] for theirs in ours if theirs != "class_embedding"} == {
        theirs: own for theirs, own in ours.items() if theirs != "class_embedding"  # the host has no x4 upscaler there
    }
