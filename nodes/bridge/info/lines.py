"""What panels and `info` outputs say about a file, line by line: one table of English templates, which translations are made of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TEMPLATES = {  # key -> English; locales/en/main.json has them as temporalUnet.info
    "family": "{family}",
    "parameters": "{count} M parameters, {dtype}",
    "parametersComputed": "{count} M parameters, {dtype}, computed in {compute}",
    "quantized": "kept quantized: {types}",
    "dequantized": "dequantized while loading: {types}",
    "dialect": "GGUF, dialect {dialect}",
    "parametersInFile": "{count} M parameters, {dtype} in the file",
    "file": "{file}, {size}",
    "files": "{file}, {count} files, {size}",
    "memory": "{memory} in memory",
    "unused": "{count} tensors not used ({names}, …)",
    "hasClip": "with text encoder",
    "hasVae": "with VAE",
    "hasClipVision": "with image encoder",
    "lacksClip": "no text encoder in the file: connect Load CLIP",
    "lacksVae": "no VAE in the file: connect Load VAE",
    "lacksClipVision": "no image encoder in the file",
    "svdControlNet": "SVD ControlNet",
    "svdControlNetSpatial": "SVD ControlNet, spatial only",
    "seesAllFrames": "residuals for every frame, all frames seen together",
    "seesEachFrame": "residuals for every frame, each seen by itself",
    "controlNextV1": "ControlNeXt-SVD v1",
    "controlNextV2": "ControlNeXt-SVD v2 (a ControlNeXt-SDXL file looks the same)",
    "beforeMiddle": "one feature for every frame, before the middle block",
    "afterFirstLevel": "one feature for every frame, after the first level, on the conditioned half alone",
    "ownUNet": "made for the SVD UNet that comes with it: load that one too",
    "kind": "{kind}",
    "kindFor": "{kind} for {family}",
    "kindForSD2": "{kind} for Stable Diffusion 2 or SVD",
    "kindForImages": "{kind} for an image model",
    "loraOnVideo": "acts on {reached} of its {count} layers, {spatial} spatial and {temporal} temporal; strength {strength}",
    "loraOnImages": "acts on {reached} of its {count} layers; strength {strength}",
    "loraOff": "strength 0: the model is unchanged",
    "loraNotInModel": "{count} layers that this model does not have were left out ({names})",
    "loraOtherShape": "{count} layers of another shape were left out ({names}): the LoRA was made for another model",
    "loraNotComputed": "{count} layers of LoKr with lokr_t2 were left out, which ComfyUI cannot compute ({names})",
    "loraUnknown": "{count} tensors of an unknown kind were left out ({names})",
    "loraTextEncoder": "{count} keys for the text encoder were left out: use Load LoRA (Model and CLIP) for them",
    "loraNoAlpha": "no alpha in the file: taken to be the rank",
    "loraDora": "DoRA on {count} layers: ComfyUI divides by the norm of the unchanged weight, training by the one of the changed",
    "loraOft": "OFT on {count} layers: ComfyUI applies the strength twice",
    "loraRescale": "OFT with a rescale on {count} layers: ComfyUI does not apply it",
    "sameAtEveryStep": "the same residuals at every step, for every image or frame by itself",
    "seesEachImage": "residuals for every image or frame, each seen by itself",
}

Value = str | int | float | Mapping[str, int]  # {"bytes": …} is written in MiB or GiB


@dataclass(frozen=True)
class Line:
    """A template and what fills it in."""

    key: str
    values: Mapping[str, Value] = field(default_factory=dict)

    def __str__(self) -> str:
        return TEMPLATES[self.key].format(**{name: written(value) for name, value in self.values.items()})

    def data(self) -> dict:
        """For the browser, which shows it in the editor's language."""
        return {"key": self.key, "values": dict(self.values), "text": str(self)}


def text_of(lines: Iterable[Line]) -> str:
    return "\n".join(map(str, lines))


def size(count: int) -> Mapping[str, int]:
    """A number of bytes as a value of a line."""
    return {"bytes": int(count)}


def written(value: Value) -> str:
    """A value in English, as web/js/core/catalog.js writes it: numbers with at most one decimal, bytes in MiB or GiB."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        count = value["bytes"]
        return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
    return f"{value:,.1f}".removesuffix(".0")
