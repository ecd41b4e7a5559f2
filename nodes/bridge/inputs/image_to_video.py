"""An image to the conditioning and the empty latent that Stable Video Diffusion starts from."""

import logging
from dataclasses import dataclass

import comfy.model_management as management
import comfy.utils
import torch
import torch.nn.functional as F

from .ranges import finite

CONTEXT_WIDTH = 1024  # of SVD's image embedding (OpenCLIP ViT-H)
NOT_CONNECTED = object()  # for clip_vision, which is None where a checkpoint has no image encoder


@dataclass(frozen=True)
class ClipSettings:
    """What the clip shall be. Its size is rounded down to multiples of 8 pixels."""

    width: int
    height: int
    frames: int
    motion_bucket_id: int
    fps: int
    augmentation_level: float
    seed: int
    resize: str  # "crop", "pad" or "stretch"


def prepare(node: str, image: torch.Tensor, vae, clip_vision, clip: ClipSettings) -> tuple[list, list, dict]:
    """(positive, negative, latent) of a clip that starts from `image` [1, h, w, 3] in 0..1.

    The positive also holds "temporal_unet.first_image": the pixels that were encoded, at the latent's size, [1, h, w, 3] in
    0..1. Errors name `node`.
    """
    finite(node, augmentation_level=clip.augmentation_level)
    _check_parts(node, vae, clip_vision)
    width, height = _rounded(node, clip.width, clip.height)
    embedding = _embed(node, image, clip_vision)
    pixels = _middle(_resize(image, clip.width, clip.height, clip.resize), width, height)
    pixels = _augment(pixels, clip.augmentation_level, clip.seed)
    image_latent = vae.encode(pixels)
    if image_latent.ndim != 4 or image_latent.shape[1] != 4:
        raise ValueError(
            f"{node}: the VAE makes latents of shape {list(image_latent.shape)}, expected [1, 4, h, w]. "
            f"Connect the VAE of the SVD checkpoint or of Stable Diffusion 1."
        )
    common = {
        "motion_bucket_id": clip.motion_bucket_id, "fps": clip.fps, "augmentation_level": clip.augmentation_level,
    }
    first_image = F.adaptive_avg_pool2d(pixels.movedim(-1, 1), image_latent.shape[2:]).movedim(1, -1).clamp(0, 1)
    positive = [[
        embedding, {**common, "concat_latent_image": image_latent, "temporal_unet.first_image": first_image},
    ]]
    negative = [[torch.zeros_like(embedding), {**common, "concat_latent_image": torch.zeros_like(image_latent)}]]
    latent = torch.zeros(clip.frames, 4, height // 8, width // 8, device=management.intermediate_device())
    return positive, negative, {"samples": latent}


def check_pixels(node: str, name: str, image: torch.Tensor) -> None:
    """Raises ValueError, which names node and input, where a pixel is NaN or infinite."""
    if not torch.isfinite(image).all():
        raise ValueError(f"{node}: {name} holds NaN or infinite pixels; expected values from 0 to 1.")


def _check_parts(node, vae, clip_vision):
    if vae is None:
        raise ValueError(f"{node}: vae is empty: the checkpoint brought none. Load one with Load VAE.")
    if clip_vision is None:
        raise ValueError(
            f"{node}: clip_vision is empty: the checkpoint brought no image encoder. Load one with Load CLIP Vision, or "
            f"leave the input unconnected."
        )


def _rounded(node, width, height):
    """The size in whole pixels of the latent, rounded down as the host does; a line in the log where that is another one."""
    if min(width, height) < 8:
        raise ValueError(f"{node}: found a size of {width}x{height} pixels, expected at least 8x8. Use a larger width and height.")
    rounded = width // 8 * 8, height // 8 * 8
    if rounded != (width, height):
        logging.warning("%s: %dx%d is no multiple of 8; the video is made at %dx%d.", node, width, height, *rounded)
    elif width % 64 or height % 64:
        logging.warning("%s: %dx%d is no multiple of 64, on which SVD was trained.", node, width, height)
    return rounded


def _embed(node, image, clip_vision):
    """The image embedding [1, 1, width]; zeros, as in the negative, where no encoder is connected."""
    if clip_vision is NOT_CONNECTED:
        return torch.zeros(1, 1, CONTEXT_WIDTH)
    embedding = clip_vision.encode_image(image).image_embeds.unsqueeze(0)
    if embedding.shape[-1] != CONTEXT_WIDTH:
        raise ValueError(
            f"{node}: the image encoder gives embeddings of width {embedding.shape[-1]}, SVD needs {CONTEXT_WIDTH} "
            f"(OpenCLIP ViT-H). Use the encoder of the SVD checkpoint."
        )
    return embedding


def _resize(image, width, height, mode):
    """image [1, h, w, 3] to [1, height, width, 3]."""
    pixels = image.movedim(-1, 1)
    if mode == "crop":
        pixels = _cut_to_shape(pixels, width, height)
    if mode == "pad":
        scale = min(width / pixels.shape[-1], height / pixels.shape[-2])
        inner_w, inner_h = (max(1, round(side * scale)) for side in (pixels.shape[-1], pixels.shape[-2]))
        pixels = comfy.utils.common_upscale(pixels, inner_w, inner_h, "bilinear", "disabled")
        left, top = (width - inner_w) // 2, (height - inner_h) // 2
        pixels = F.pad(pixels, (left, width - inner_w - left, top, height - inner_h - top))
    else:
        pixels = comfy.utils.common_upscale(pixels, width, height, "bilinear", "disabled")
    return pixels.movedim(1, -1)


def _cut_to_shape(pixels, width, height):
    """The middle of pixels [1, c, h, w] with the aspect of width x height, as the host cuts it, but no less than a pixel."""
    old_height, old_width = pixels.shape[2:]
    old_aspect, aspect = old_width / old_height, width / height
    x = max(0, round((old_width - old_width * (aspect / old_aspect)) / 2))
    y = max(0, round((old_height - old_height * (old_aspect / aspect)) / 2))
    x, y = min(x, (old_width - 1) // 2), min(y, (old_height - 1) // 2)
    return pixels[:, :, y : old_height - y, x : old_width - x]


def _middle(pixels, width, height):
    """The middle of pixels [1, h, w, 3] at a size that a VAE takes, as the host's VAE cuts it."""
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : top + height, left : left + width]


def _augment(pixels, level, seed):
    if level == 0:
        return pixels
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return pixels + noise.to(pixels) * level
