"""An image to the conditioning and the empty latent that Stable Video Diffusion starts from."""

import logging

import comfy.model_management as management
import comfy.utils
import torch
import torch.nn.functional as F

from .ranges import finite

CONTEXT_WIDTH = 1024  # of SVD's image embedding (OpenCLIP ViT-H)
NOT_CONNECTED = object()  # for clip_vision, which is None where a checkpoint has no image encoder


def prepare(
    node, image, vae, width, height, video_frames, motion_bucket_id, fps, augmentation_level, seed, resize, clip_vision
):
    """(positive, negative, latent) of a video that starts from `image` [1, h, w, 3]; errors name `node`."""
    finite(node, augmentation_level=augmentation_level)
    _check(node, image, vae, width, height, clip_vision)
    embedding = _embed(node, image[:1], clip_vision)
    pixels = _augment(_resize(image[:1, :, :, :3], width, height, resize), augmentation_level, seed)
    image_latent = vae.encode(pixels)
    if image_latent.ndim != 4 or image_latent.shape[1] != 4:
        raise ValueError(
            f"{node}: the VAE makes latents of shape {list(image_latent.shape)}, expected [1, 4, h, w]. "
            f"Connect the VAE of the SVD checkpoint or of Stable Diffusion 1."
        )
    common = {"motion_bucket_id": motion_bucket_id, "fps": fps, "augmentation_level": augmentation_level}
    positive = [[embedding, {**common, "concat_latent_image": image_latent}]]
    negative = [[torch.zeros_like(embedding), {**common, "concat_latent_image": torch.zeros_like(image_latent)}]]
    latent = torch.zeros(video_frames, 4, height // 8, width // 8, device=management.intermediate_device())
    return positive, negative, {"samples": latent}


def _check(node, image, vae, width, height, clip_vision):
    if vae is None:
        raise ValueError(f"{node}: vae is empty: the checkpoint brought none. Load one with Load VAE.")
    if clip_vision is None:
        raise ValueError(
            f"{node}: clip_vision is empty: the checkpoint brought no image encoder. Load one with Load CLIP Vision, or "
            f"leave the input unconnected."
        )
    for name, size in (("width", width), ("height", height)):
        if size % 8:
            raise ValueError(f"{node}: {name} {size} is not a multiple of 8; use {size // 8 * 8} or {size // 8 * 8 + 8}.")
        if size % 64:
            logging.warning("%s: %s %d is not a multiple of 64, on which SVD was trained.", node, name, size)
    if image.shape[0] > 1:
        logging.warning("%s: init_image holds %d images; the first is used.", node, image.shape[0])
    if not torch.isfinite(image[:1]).all():
        raise ValueError(f"{node}: init_image holds NaN or infinite pixels; expected values from 0 to 1.")


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
    if mode == "pad":
        scale = min(width / pixels.shape[-1], height / pixels.shape[-2])
        inner_w, inner_h = round(pixels.shape[-1] * scale), round(pixels.shape[-2] * scale)
        pixels = comfy.utils.common_upscale(pixels, inner_w, inner_h, "bilinear", "disabled")
        left, top = (width - inner_w) // 2, (height - inner_h) // 2
        pixels = F.pad(pixels, (left, width - inner_w - left, top, height - inner_h - top))
    else:
        pixels = comfy.utils.common_upscale(pixels, width, height, "bilinear", "center" if mode == "crop" else "disabled")
    return pixels.movedim(1, -1)


def _augment(pixels, level, seed):
    if level == 0:
        return pixels
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return pixels + noise.to(pixels) * level
