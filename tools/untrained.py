"""Write small model files of random weights in the real layouts, so that every example workflow runs without a download.

`python -m tools.untrained --out DIR` fills DIR as ComfyUI lays out its `models` folder. The weights are untrained: what they
make is noise, but Load UNet and the host's loaders read each file as they read the real thing. Run again it writes the same
bytes; a file is put in place only when it is whole. About 200 MB.

What the host takes at full size only is written by runs of its own: `--text-encoders` (CLIP-L and CLIP-G, 1.6 GB) and
`--svd-checkpoint` (a checkpoint with UNet, VAE and image encoder, 1.7 GB).
The tests need them, `dev.py run` does not.
"""
from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from support.families import FULL, PREFIX, TINY, random_weights, write_unet

# Real blocks at the real places, few channels: the sampler's time goes with the width, not with the layout.
SVD = replace(TINY["svd"], channel_mult=(1, 1, 2, 2))
SDXL = replace(
    TINY["sdxl"], channel_mult=(1, 2, 2), depth_in=(0, 0, 1, 1, 1, 1), depth_out=(1, 1, 1, 1, 1, 1, 0, 0, 0), depth_middle=1
)
# As wide as the real one, because the host's ControlNet loader knows the heads of that width only; two levels keep it small.
SD15 = replace(
    FULL["sd1"], channel_mult=(1, 1), num_res_blocks=(1, 1), depth_in=(1, 0), depth_out=(0, 0, 1, 1), self_attention=(True,) * 2
)
VAE_SEED = 12  # of the images that the first forty seeds give, this one's is the least tinted
HINT_CHANNELS = (3, 16, 16, 32, 32, 96, 96, 256)
SVD_REAL_WIDTH = replace(FULL["svd"], channel_mult=(1, 1, 1, 1))  # of the depths and width by which the host knows SVD
CLIP_L = {"width": 768, "layers": 12}
CLIP_G = {"width": 1280, "layers": 32}


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int, gains: dict[str, float] | None = None) -> dict[str, torch.Tensor]:
    """fp16 weights that keep activations near 1: matrices by their fan-in, norms 1, biases 0.

    `gains`: a factor for the tensors whose names end so.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            value = torch.randn(shape, generator=generator) * torch.Size(shape[1:]).numel() ** -0.5
        else:
            value = torch.full(shape, float(name.endswith("weight")))
        gain = next((gain for end, gain in (gains or {}).items() if name.endswith(end)), 1.0)
        tensors[name] = (value * gain).half()
    return tensors


def controlnet_weights(seed: int) -> dict[str, torch.Tensor]:
    """An SD 1 ControlNet as wide as `SD15`, in the layout of the original's repository: the UNet's first half and taps."""
    def conv(name, into, out, size):
        return {f"{name}.weight": (out, into, size, size), f"{name}.bias": (out,)}

    unet = {name: value for name, value in random_weights(SD15, seed, torch.float16).items()
            if name.startswith(("time_embed.", "input_blocks.", "middle_block."))}
    width, blocks = SD15.model_channels, len({name.split(".")[1] for name in unet if name.startswith("input_blocks.")})
    taps = {}
    for index, (into, out) in enumerate(zip(HINT_CHANNELS, (*HINT_CHANNELS[1:], width), strict=True)):
        taps |= conv(f"input_hint_block.{2 * index}", into, out, 3)
    for index in range(blocks):
        taps |= conv(f"zero_convs.{index}.0", width, width, 1)
    return unet | random_tensors(taps | conv("middle_block_out.0", width, width, 1), seed + 1)


def vae_weights(seed: int) -> dict[str, torch.Tensor]:
    """A tiny autoencoder (TAESD, https://github.com/madebyollin/taesd) as the host reads it: 4 latent channels, factor 8."""
    def shapes(half, layers):
        for index, layer in enumerate(layers):
            if layer == "block":
                for inner in (0, 2, 4):
                    yield f"{half}.{index}.conv.{inner}.weight", (64, 64, 3, 3)
                    yield f"{half}.{index}.conv.{inner}.bias", (64,)
            elif layer is not None:
                into, out, bias = layer
                yield f"{half}.{index}.weight", (out, into, 3, 3)
                if bias:
                    yield f"{half}.{index}.bias", (out,)

    scaling = (64, 64, False)
    three = ["block"] * 3
    encoder = [(3, 64, True), "block", scaling, *three, scaling, *three, scaling, *three, (64, 4, True)]
    level = [*three, None, scaling]
    decoder = [None, (4, 64, True), None, *level, *level, *level, "block", (64, 3, True)]
    tensors = random_tensors(
        {**dict(shapes("taesd_encoder", encoder)), **dict(shapes("taesd_decoder", decoder))}, seed,
        {".conv.4.weight": 0.3, ".weight": 2 ** 0.5},  # each block adds a little; the rest keeps its size through ReLU
    )
    last = tensors["taesd_decoder.19.weight"]
    # Mostly differences between neighbors around mid-gray, so that images are neither black nor overexposed.
    tensors["taesd_decoder.19.weight"] = 0.3 * (last - 0.8 * last.mean((2, 3), keepdim=True))
    tensors["taesd_decoder.19.bias"] += 0.5
    return tensors | {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}


def clip_weights(width: int, layers: int, seed: int) -> dict[str, torch.Tensor]:
    """A CLIP text encoder in the layout of transformers' CLIPTextModelWithProjection."""
    shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_projection.weight": (width, width),
    }
    linear = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width, width), "self_attn.v_proj": (width, width),
              "self_attn.out_proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for layer in (f"text_model.encoder.layers.{index}" for index in range(layers)):
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
    shapes |= {"text_model.final_layer_norm.weight": (width,), "text_model.final_layer_norm.bias": (width,)}
    return random_tensors(shapes, seed)


def image_encoder_weights(seed: int) -> dict[str, torch.Tensor]:
    """OpenCLIP ViT-H as it lies in an SVD checkpoint: the host knows it by its 32 layers."""
    width, layers = 1280, 32
    shapes = {
        "class_embedding": (width,), "conv1.weight": (width, 3, 14, 14), "positional_embedding": (257, width),
        "proj": (width, 1024),
    }
    norms = ["ln_pre", "ln_post"]
    for layer in (f"transformer.resblocks.{index}" for index in range(layers)):
        norms += [f"{layer}.ln_1", f"{layer}.ln_2"]
        linear = {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width),
                  "mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width)}
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}weight": shape, f"{layer}.{name}bias": shape[:1]}
    shapes |= {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
    return random_tensors(shapes, seed)


def svd_checkpoint_parts(seed: int) -> dict[str, torch.Tensor]:
    """What stands next to the UNet in an SVD checkpoint: image encoder and VAE."""
    prefix = "conditioner.embedders.0.open_clip.model.visual."
    encoder = {prefix + name: value for name, value in image_encoder_weights(seed).items()}
    return encoder | {f"first_stage_model.{name}": value for name, value in vae_weights(VAE_SEED).items()}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    place(path, lambda part: save_file(tensors, part))


def place(path: Path, make) -> None:
    """`path`, made by `make(temporary path)`: a half-written file never stands under the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    make(part)
    os.replace(part, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write small untrained model files in the real layouts.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="becomes like ComfyUI's models folder")
    parser.add_argument("--text-encoders", action="store_true", help="write CLIP-L and CLIP-G (1.6 GB) instead of the small files")
    parser.add_argument("--svd-checkpoint", action="store_true",
                        help="write a checkpoint with image encoder (1.7 GB) instead of them")
    args = parser.parse_args()
    if args.text_encoders:
        write(args.out / "text_encoders" / "untrained_clip_l.safetensors", clip_weights(**CLIP_L, seed=6))
        write(args.out / "text_encoders" / "untrained_clip_g.safetensors", clip_weights(**CLIP_G, seed=7))
    if args.svd_checkpoint:
        unet = random_weights(SVD_REAL_WIDTH, seed=8, dtype=torch.float16)
        write(args.out / "checkpoints" / "untrained_svd_checkpoint.safetensors",
              {PREFIX + name: value for name, value in unet.items()} | svd_checkpoint_parts(seed=9))
    if not (args.text_encoders or args.svd_checkpoint):
        write_small_files(args.out)


def write_small_files(out: Path) -> None:
    unets = out / "diffusion_models"
    for seed, (name, config) in enumerate({"svd": SVD, "sd15": SD15, "sdxl": SDXL}.items()):
        place(unets / f"untrained_{name}.safetensors",
              partial(write_unet, config=config, seed=seed, dtype=torch.float16))
    write(out / "controlnet" / "untrained_sd15_controlnet.safetensors", controlnet_weights(seed=3))
    write(out / "vae" / "untrained_vae.safetensors", vae_weights(VAE_SEED))


if __name__ == "__main__":
    main()
