"""The names that LoRA files have for the layers of a network: the original's and diffusers', with dots or `_` between their parts.

The host's own table (`comfy.lora.model_lora_keys_unet`) has the same, but for diffusers' names of layers over time, and of those
with dots it has only the ones of old attention processors. Of names with `_` nothing is guessed: each stands in the table.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel as HostsUNet

from ....unet import UNetConfig, UNetModel
from ....unet.weights.detect import canonical_names, read_config
from ....unet.weights.diffusers_names import diffusers_layers

TEMPORAL = re.compile(r"\.time_(?:stack|mixer|pos_embed)(?![^.])")


@dataclass(frozen=True)
class Layer:
    """What a LoRA can change in a network: a layer's weight and bias, or an AlphaBlender's mix factor."""

    key: str  # of the weight or mix factor in a MODEL
    weight: tuple[int, ...]  # shape
    bias: tuple[int, ...] | None

    @property
    def path(self) -> str:
        return self.key.removesuffix(".weight")

    @property
    def temporal(self) -> bool:
        return TEMPORAL.search(self.key) is not None


def layers_by_name(network: HostsUNet | UNetModel) -> dict[str, Layer]:
    """Each layer of a network under each of its names, without the prefixes that LoRA files put before them."""
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    names = canonical_names(shapes)
    config = network.config if isinstance(network, UNetModel) else read_config({own: shapes[name] for own, name in names.items()})
    table: dict[str, Layer] = {}
    for own, paths in paths_of(config):
        name = names[own]
        bias = shapes.get(f"{name.removesuffix('weight')}bias")
        layer = Layer(f"diffusion_model.{name}", shapes[name], bias)
        table |= {spelled: layer for path in paths for spelled in (path, path.replace(".", "_"))}
    return table


def paths_of(config: UNetConfig) -> Iterator[tuple[str, list[str]]]:
    """(name of a weight or mix factor, the paths that it is known by) for each in a network with this config."""
    for own, theirs in diffusers_layers(config).items():
        if own.endswith(".time_mixer"):
            yield f"{own}.mix_factor", [f"{own}.mix_factor", f"{theirs}.mix_factor"]
        else:  # old files of diffusers leave out the index of attention's last layer
            yield f"{own}.weight", [own, theirs, *(path[:-2] for path in (own, theirs) if path.endswith(".to_out.0"))]
