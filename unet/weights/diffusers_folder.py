"""diffusers' folders: which file in one holds the network, and what the JSON files next to it say that no tensor does."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import UNetConfig
from .errors import UNetFileError, shorten
from .on_disk import open_regular

MOST_CONFIG = 2**20  # bytes of a JSON file; diffusers' own have 1,500
# Half the size first, as hosts have it; whoever wants another chooses the file itself.
NETWORKS = tuple(
    f"diffusion_pytorch_model{name}"
    for ending in ("safetensors", "bin")
    for name in (f".fp16.{ending}", f".{ending}.index.fp16.json", f".{ending}", f".{ending}.index.json")
)
NETWORK_CLASSES = {"UNet2DConditionModel": False, "UNetSpatioTemporalConditionModel": True}  # -> has it layers over time


@dataclass(frozen=True)
class Schedule:
    """How a network was trained, by diffusers' `scheduler_config.json`."""

    prediction: str  # "epsilon", "v_prediction", …
    zero_snr: bool  # the last step is noise alone
    edm: bool  # noise and scaling of Karras et al. 2022 (arXiv 2206.00364)


def network_in(folder: Path) -> Path:
    """The file, or index, of the network in a folder of diffusers' layout; raises UNetFileError where it holds none."""
    found = next((path for name in NETWORKS if (path := folder / "unet" / name).is_file()), None)
    if found is None:
        raise UNetFileError(
            f"{folder.name}: it is a folder, expected a file, or a folder of diffusers' layout with unet/{NETWORKS[2]} (or fp16, "
            f".bin, or an index). Choose another."
        )
    return found


def with_heads(config: UNetConfig, weights: Path) -> UNetConfig:
    """The config with the attention heads that diffusers' `config.json` next to the file `weights` gives.

    As it is where there is none, or one of another network. Raises UNetFileError where its heads do not fit the widths.
    """
    found = read_json(weights.with_name("config.json"))
    if NETWORK_CLASSES.get(str(found.get("_class_name"))) != config.temporal or (
        found.get("block_out_channels"), found.get("in_channels"), found.get("cross_attention_dim")
    ) != (config.level_channels, config.in_channels, config.context_dim):
        return config
    counts = found.get("num_attention_heads") or found.get("attention_head_dim")  # which in 2-D networks is their count, too
    if counts is None:
        return config
    each = counts if isinstance(counts, list) else [counts] * len(config.level_channels)
    if len(each) == len(config.level_channels) and all(
        type(count) is int and count > 0 and width % count == 0 for count, width in zip(each, config.level_channels, strict=True)
    ):
        widths = {width // count for count, width in zip(each, config.level_channels, strict=True)}
        if len(widths) == 1:
            return replace(config, num_heads=None, head_channels=widths.pop())
        if len(set(each)) == 1:
            return replace(config, num_heads=each[0], head_channels=None)
    raise UNetFileError(
        f"config.json next to it counts {shorten(repr(counts))} attention heads for channels {config.level_channels}, expected one "
        f"width, or one count, of heads in all levels. Get config.json again from the model's source."
    )


def schedule_of(weights: Path) -> Schedule | None:
    """How the network in this file was trained, where it lies in `unet/` of a folder of diffusers' layout.

    Raises UNetFileError where the folder's `scheduler_config.json` cannot be read.
    """
    path = weights.parent.parent / "scheduler" / "scheduler_config.json"
    if weights.parent.name != "unet" or not path.is_file():
        return None
    found = read_json(path)
    kind, prediction = found.get("_class_name"), found.get("prediction_type", "epsilon")
    if not isinstance(kind, str) or not isinstance(prediction, str):
        raise UNetFileError(
            "scheduler/scheduler_config.json, which says how it was trained, cannot be read. Get it again from the model's source, "
            "or remove it."
        )
    return Schedule(prediction, found.get("rescale_betas_zero_snr") is True, kind.startswith("EDM"))


def read_json(path: Path) -> Mapping[str, Any]:
    """What a JSON file holds by name; nothing where there is no such file, or one of something else."""
    try:
        with open_regular(path) as file:
            found = json.loads(file.read(MOST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
