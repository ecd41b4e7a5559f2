"""What each number format of GGUF costs a video: the miniature's weights in it, next to the video of the weights as they are.

    python dev.py bench types -- --ggml .../libstable-diffusion.so [--types Q4_K IQ4_XS]

Our writer knows few of these formats, so ggml's own quantizer writes them: any library with ggml in it, such as that of the package
stable-diffusion-cpp-python. As there, the importance matrix is one of ones. One world that training never saw, 10 steps;
`dB` is the PSNR over frames 1 to 7, `center` how far the sprite is from where it truly is, in pixels of 128.
"""

import argparse
import ctypes
import importlib
import os
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch

from support.host_in_process import boot
from tools.bench.quality import Studio, held_out, score
from tools.bench.written_files import COMFY_PLAIN
from tools.miniature import world

STEPS = 10
ROW = 256  # numbers
TYPES = (
    "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)


class Quantizer:
    """ggml's own, in a library that exports it (`ggml.h`)."""

    def __init__(self, library: Path):
        self.call = ctypes.CDLL(str(library)).ggml_quantize_chunk
        self.call.restype = ctypes.c_size_t
        self.call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def __call__(self, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        """The blocks, uint8 [rows, bytes], of fp32 [rows, ROW]."""
        block, size = gguf.GGML_QUANT_SIZES[kind]
        values, alike = np.ascontiguousarray(values, np.float32), np.ones(ROW, np.float32)
        blocks = np.empty((len(values), ROW // block * size), np.uint8)
        made = self.call(kind, values.ctypes.data, blocks.ctypes.data, 0, *values.shape, alike.ctypes.data)
        if made != blocks.nbytes:
            raise RuntimeError(f"{kind.name}: {made} bytes, expected {blocks.nbytes}")
        return blocks


def write(path: Path, weights: dict[str, torch.Tensor], head_channels: int, kind: str, quantizer: Quantizer) -> None:
    """The network as GGUF in the dialect of ComfyUI-GGUF, convolutions quantized, too."""
    writer = gguf.GGUFWriter(path, "sd1")
    writer.add_string("temporal_unet.head_channels", str(head_channels))
    for name, weight in weights.items():
        values = weight.float().numpy()
        if values.ndim < 2 or values.size % ROW or name.startswith(COMFY_PLAIN):
            writer.add_tensor(name, values if values.ndim < 2 else values.astype(np.float16))
            continue
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(map(int, values.shape)))
        chosen = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, quantizer(values.reshape(-1, ROW), chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def likeness(video: np.ndarray, other: np.ndarray) -> float:
    """PSNR over frames 1 to the last, dB."""
    return -10 * np.log10(np.square(np.clip(video[1:], 0, 1) - np.clip(other[1:], 0, 1)).mean())


def table(package: str, quantizer: Quantizer, types: list[str]) -> None:
    load = importlib.import_module(f"{package}.nodes.bridge.model.unet_loader").load_model
    studio, of = Studio(), held_out(1)[0]
    truth, plain = world.render(of), studio.make(of, steps=STEPS)
    print("| type | bits | file, MB | dB | center |\n|---|---|---|---|---|", flush=True)
    print(f"| fp16 | | | | {center(plain, truth):.2f} |", flush=True)
    for kind in types:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "miniature.gguf")
            write(path, studio.unet, studio.head_channels, kind, quantizer)
            video = studio.make(of, steps=STEPS, model=load(str(path), {"dtype": torch.float32}))  # dequantized once
            taken = path.stat().st_size / 1e6
        figures = f"{8 * size / block:.2f} | {taken:.1f} | {likeness(video, plain):.1f} | {center(video, truth):.2f}"
        print(f"| {kind} | {figures} |", flush=True)


def center(video: np.ndarray, truth: world.Clip) -> float:
    return score(video, truth).centre[1:].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("TEMPORAL_UNET_HOST"), help="a ComfyUI checkout")
    parser.add_argument("--ggml", type=Path, required=True, help="a library that exports ggml_quantize_chunk")
    parser.add_argument("--types", nargs="+", default=TYPES)
    settings = parser.parse_args()
    if not settings.host:
        sys.exit("number_formats.py: name a ComfyUI checkout with --host or in TEMPORAL_UNET_HOST.")
    package = boot(settings.host)
    with torch.inference_mode():
        table(package, Quantizer(settings.ggml.resolve()), settings.types)


if __name__ == "__main__":
    main()
