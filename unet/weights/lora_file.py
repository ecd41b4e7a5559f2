"""LoRA files of every spelling: which tensors belong to which layer, read from the header alone.

A LoRA changes the weights W of layers: by W + alpha / rank · up · down, or as one of its relatives does (LoHa, LoKr, GLoRA, OFT,
plain differences). Of each key of such a file the end is the parameter, what stands before it the layer.
Sources: the scripts of kohya-ss, LyCORIS, diffusers and PEFT.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .errors import UNetFileError, shorten
from .files import check_dtypes, is_mapped, open_files, shapes_and_dtypes_of
from .kinds import other_kind
from .lora_shapes import kinds_of, missing_from
from .on_disk import Stamps, changed_in_place, open_regular, stamps_of
from .pickles import PickledFile, unpickled
from .shards import weight_files

# Before the layer's name, several of them too: `unet.base_model.model.down_blocks…`, `lora_unet_down_blocks_…`.
PREFIX = re.compile(r"(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|unet\.|lora_unet_|lycoris_)+")
PARAMETER = re.compile(
    r"\.(?:alpha|dora_scale|lora_(?:up|down|mid)\.weight|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|oft_blocks|rescale"
    r"|[ab][12]\.weight|diff|diff_b|w_norm|b_norm|set_weight|reshape_weight)$"
)
# Other spellings of the first four: PEFT's, with the name of an adapter in between or without, and three of diffusers'.
DOWN_UP = re.compile(
    r"(?:\.lora_(?:(A)|B)(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?|(?:\.lora|_lora|\.lora_linear_layer)\.(?:(down)|up)\.weight)$"
)
MAGNITUDE = re.compile(r"\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?$")
TEXT_ENCODER = re.compile(
    r"(?:base_model\.model\.|lycoris_)?(?:lora_te\d?_|lora_prior_te_|text_encoders?(?:_\d)?\.|text_model[._]|cond_stage_model\."
    r"|conditioner\.)"
)
NUMBERED = re.compile(r"(?:unet|text_encoder):\d+:(?:up|down)$")  # cloneofsimo's first files: layers by their place alone
NO_CHANGE = {"alpha", "dora_scale", "rescale", "lora_mid.weight", "reshape_weight"}  # parameters that mean nothing by themselves
NO_FLOATS = {"alpha", "reshape_weight"}  # parameters that may be integers
METADATA = "lora_adapter_metadata"  # diffusers' key for PEFT's settings
MOST_CONFIG = 1_000_000  # bytes of a JSON text that are read


@dataclass(kw_only=True)
class LoRAFile:
    """An open file with a LoRA in it; its tensors are read when they are asked for."""

    path: Path
    stamps: Stamps  # of the files that the tensors are in, when they were opened
    layers: dict[str, dict[str, str]]  # layer, without prefixes -> its parameters, as `PARAMETER` spells them -> keys in the file
    text_encoder: list[str]  # keys that are for a text encoder
    unknown: list[str]  # keys of no known parameter
    shapes: Mapping[str, tuple[int, ...]]
    settings: "Settings"
    file: Any

    def parameter_shapes(self, layer: str) -> dict[str, tuple[int, ...]]:
        return {parameter: self.shapes[key] for parameter, key in self.layers[layer].items()}

    def read(self, layer: str) -> dict[str, torch.Tensor]:
        """The layer's parameters, in memory of their own; with an `alpha` from the settings where it has none.

        Raises UNetFileError where the file was written to or cut since it was opened: what is mapped from it may be gone.
        """
        if any(changed_in_place(path, stamp) for path, stamp in self.stamps.items()):
            raise UNetFileError(f"{self.path.name}: it was changed after it was opened. Load it again once it is written.")
        copy = is_mapped(self.file)
        found = {parameter: self.file.get_tensor(key) for parameter, key in self.layers[layer].items()}
        tensors = {parameter: tensor.clone() if copy else tensor for parameter, tensor in found.items()}
        if "lora_down.weight" in tensors and "alpha" not in tensors:
            alpha = self.settings.alpha_of(layer, len(tensors["lora_down.weight"]))
            if alpha is not None:
                tensors["alpha"] = torch.tensor(alpha)
        return tensors

    def lacks_alpha(self, layer: str) -> bool:
        parameters = self.layers[layer]
        return "lora_down.weight" in parameters and "alpha" not in parameters and self.settings.alpha_of(layer, 1) is None


@dataclass(frozen=True)
class Settings:
    """What PEFT was set to in training, from which follows the alpha of layers that store none; None: not known."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)  # of single layers, by the ends of their names
    by_root: bool = False  # rank-stabilized: scaled by alpha / √rank

    def alpha_of(self, layer: str, rank: int) -> float | None:
        """The alpha for alpha / rank · up · down."""
        alpha = next((alpha for end, alpha in self.alphas.items() if f".{layer}".endswith(f".{end}")), self.alpha)
        return alpha * rank ** 0.5 if alpha is not None and self.by_root else alpha


def open_lora(path: str | Path) -> LoRAFile:
    """Opens a LoRA file, reading its header only.

    Raises UNetFileError, which names the file, where it cannot be read, holds no LoRA, or holds something twice.
    """
    path = Path(path)
    files = weight_files(path)
    stamps = stamps_of(files)
    file = open_files(path, files)
    shapes, dtypes = shapes_and_dtypes_of(file)
    try:
        if isinstance(file, PickledFile) and not shapes:
            _check_names(path)
        layers, text_encoder, unknown = _sort(shapes)
        check_dtypes(dtypes, [key for layer in layers.values() for name, key in layer.items() if name not in NO_FLOATS])
        settings = _settings(path, file.metadata() or {}, any(key.startswith("base_model.model.") for key in shapes))
    except UNetFileError as error:
        raise UNetFileError(f"{path.name}: {error}") from None
    return LoRAFile(
        path=path, stamps=stamps, layers=layers, text_encoder=text_encoder, unknown=unknown, shapes=shapes, settings=settings,
        file=file,
    )


def _check_names(path: Path) -> None:
    if isinstance(unpickled(path, "meta"), (list, tuple)):
        raise _unnamed("a list of tensors without names, as I2VEdit saves its LoRA")


def _unnamed(found: str) -> UNetFileError:
    return UNetFileError(
        f"it holds {found}; expected tensors under the names of their layers. Which layers these are for cannot be detected: use "
        f"it with the program that wrote it, or save it from there with names."
    )


def _sort(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, dict[str, str]], list[str], list[str]]:
    """(layers, keys for a text encoder, unknown keys) of a LoRA file."""
    if any(map(NUMBERED.match, shapes)):
        raise _unnamed("tensors whose layers are counted, not named (unet:0:up, …)")
    layers: dict[str, dict[str, str]] = {}
    text_encoder, unknown = [], []
    for key in shapes:
        found = parameter_of(key)
        if TEXT_ENCODER.match(key):
            text_encoder.append(key)
        elif found is None:
            unknown.append(key)
        else:
            layer, parameter = found
            parameters = layers.setdefault(layer, {})
            if parameter in parameters:
                raise twice(parameters[parameter], key)
            parameters[parameter] = key
    for layer in [layer for layer, parameters in layers.items() if parameters.keys() <= NO_CHANGE]:
        unknown += layers.pop(layer).values()
    if not layers and not any(map(parameter_of, text_encoder)):
        raise UNetFileError(_no_lora(shapes))
    for layer, parameters in layers.items():
        _check_whole(layer, {parameter: shapes[key] for parameter, key in parameters.items()})
    return layers, text_encoder, unknown


def _check_whole(layer: str, parameters: Mapping[str, tuple[int, ...]]) -> None:
    kinds, missing = kinds_of(parameters), missing_from(parameters)
    if missing is not None:
        raise UNetFileError(f"{shorten(layer)} has no {missing}: the file is damaged. Get it again from its source.")
    if len(kinds) > 1:
        raise UNetFileError(
            f"{shorten(layer)} is changed in two ways at once ({' and '.join(kinds)}), and only one of them can act. Choose "
            f"another LoRA."
        )
    if math.prod(parameters.get("alpha", ())) != 1:
        found = list(parameters["alpha"])
        raise UNetFileError(f"{shorten(layer)}.alpha has shape {found}, expected one value. Get the file again from its source.")


def twice(key: str, other: str) -> UNetFileError:
    return UNetFileError(
        f"{shorten(key)} and {shorten(other)} are for the same layer, and only one of them can act. Take a LoRA that was saved "
        f"once, under one kind of names."
    )


def parameter_of(key: str) -> tuple[str, str] | None:
    """(layer, parameter) that a key names, as `PARAMETER` spells it; None where it names none."""
    if found := PARAMETER.search(key):
        parameter = found[0][1:]
    elif found := DOWN_UP.search(key):
        parameter = "lora_down.weight" if found[1] or found[2] else "lora_up.weight"
    elif found := MAGNITUDE.search(key):
        parameter = "dora_scale"
    else:
        return None
    layer = key[:found.start()]
    prefix = PREFIX.match(layer)
    return layer[prefix.end() if prefix else 0:].replace(".processor.", "."), parameter


def _no_lora(shapes: Mapping[str, tuple[int, ...]]) -> str:
    other = other_kind(shapes)
    if other is not None:
        return f"it holds {other[0]}, not a LoRA. {other[1]}"
    some = f" such as {', '.join(map(shorten, list(shapes)[:3]))}" if shapes else ""
    return (
        f"it holds no LoRA (found {len(shapes)} tensors{some}; expected names such as lora_unet_….lora_up.weight or "
        f"unet.….lora.up.weight). Choose a LoRA file."
    )


def _settings(path: Path, metadata: Mapping[str, str], is_peft: bool) -> Settings:
    """PEFT's settings from a file's metadata, or from the `adapter_config.json` that PEFT saves next to its own files."""
    if METADATA in metadata:
        found = _parsed(metadata[METADATA][:MOST_CONFIG], f"the JSON text {METADATA} in its metadata")
        return _read_settings({key.removeprefix("unet."): value for key, value in found.items()})
    if is_peft and path.with_name("adapter_config.json").exists():
        with open_regular(path.with_name("adapter_config.json")) as file:
            return _read_settings(_parsed(file.read(MOST_CONFIG), "adapter_config.json next to it"))
    return Settings()


def _parsed(text: str | bytes, name: str) -> dict:
    try:
        found = json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UNetFileError(f"{name} cannot be read, and with it the alpha of its layers. Get the file again from its source.")
    return found


def _read_settings(found: dict) -> Settings:
    alpha, patterns = found.get("lora_alpha"), found.get("alpha_pattern")
    if not isinstance(alpha, float):
        return Settings()
    alphas = {end: value for end, value in patterns.items() if isinstance(value, float)} if isinstance(patterns, dict) else {}
    if not all(map(math.isfinite, (alpha, *alphas.values()))):
        raise UNetFileError(f"its lora_alpha is {alpha:g}, expected finite numbers. Get the file again from its source.")
    return Settings(alpha, alphas, found.get("use_rslora") is True)
