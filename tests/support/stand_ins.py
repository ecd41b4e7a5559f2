"""What stands in for a user's files: models of the real layout and size that take next to no space, and a control video.

Where a model is given no weights its file has holes, which read as zeros.
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import av
import torch
from PIL import Image

from support import ggufs
from support.diffusers_names import to_diffusers
from support.families import FULL
from tools import untrained
from unet import ControlNetConfig, SVDControlNet, UNetConfig, UNetModel

Shapes = Mapping[str, tuple[int, ...]]
DTYPES = {torch.float16: "F16", torch.float32: "F32"}


def write_hollow(path: Path, shapes: Shapes, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
    """A safetensors file with `tensors`, and fp16 ones of these `shapes` that are all zero."""
    header, end, tensors = {}, 0, tensors or {}
    kinds = {name: (DTYPES[tensor.dtype], tuple(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()}
    kinds |= {name: ("F16", tuple(shape), 2 * math.prod(shape)) for name, shape in shapes.items()}
    for name, (dtype, shape, size) in kinds.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.contiguous().numpy().tobytes())
        file.truncate(8 + len(text) + end)


def write_hollow_gguf(path: Path, shapes: Shapes) -> None:
    """A GGUF file of the dialect "comfy" with weights of these `shapes` that are all zero, Q8_0 where they fill blocks."""
    tensors, pairs, end = [], [ggufs.text_pair("general.architecture", "svd")], 0
    for name, shape in shapes.items():
        numbers = math.prod(shape)
        packed = len(shape) > 1 and numbers % 256 == 0
        if packed:
            pairs.append(ggufs.shape_pair(name, shape))
        tensors.append(ggufs.tensor(name, (256, numbers // 256) if packed else shape[::-1], 8 if packed else 0, end))
        end += -(-(numbers // 32 * 34 if packed else numbers * 4) // 32) * 32
    header = ggufs.gguf(tensors, pairs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + end)


def unet_shapes(config: UNetConfig, prefix: str = "model.diffusion_model.") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(tensor.shape) for name, tensor in UNetModel(config, device="meta").state_dict().items()}


def lineart_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the public SVD ControlNets."""
    encoder = replace(FULL["svd"], out_channels=0, depth_out=())
    network = SVDControlNet(ControlNetConfig(encoder, 3, (16, 32, 96, 256)), device="meta")
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return {name if name.startswith("controlnet_") else to_diffusers(name): shape for name, shape in shapes.items()}


def write_svd(path: Path) -> None:
    """A checkpoint of the layout by which the host knows SVD, of which only the VAE has weights.

    The host knows an image encoder at full size only: its weights would be 1.3 GB.
    """
    with patch.object(untrained, "random_tensors", lambda shapes, *_: shapes):
        encoder = untrained.image_encoder_weights(0)
    shapes = {f"conditioner.embedders.0.open_clip.model.visual.{name}": shape for name, shape in encoder.items()}
    vae = {f"first_stage_model.{name}": value for name, value in untrained.vae_weights(untrained.VAE_SEED).items()}
    write_hollow(path, shapes | unet_shapes(untrained.SVD_REAL_WIDTH), vae)


def write_video(photo: Path, path: Path, frames: int = 14) -> None:
    """A slow move toward the middle of the photo."""
    picture = Image.open(photo).convert("RGB")
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=6)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for index in range(frames):
            inset = index * picture.width // (4 * frames)
            frame = picture.crop((inset, inset, picture.width - inset, picture.height - inset)).resize((256, 256))
            file.mux(stream.encode(av.VideoFrame.from_image(frame)))
        file.mux(stream.encode(None))
