"""Decoding the latent of a clip with any VAE of the host, to the same pixels whatever memory is free."""

import logging
import math

import comfy.model_management as management
import comfy.utils
import torch

from ..model.memory_budget import is_out_of_memory, until_it_fits
from ..node_names import DECODE_VIDEO
from .video_decoder import STAGES, clip_bytes, decode_frames, find_video_decoder


def decode_clip(vae, latent: torch.Tensor, frames_per_chunk: int, overlap: int, take_frames: int | None = None) -> torch.Tensor:
    """latent [t, c, h, w] or [b, c, t, h, w] to pixels [frames, h', w', c'] from 0 to 1 on the host's intermediate device.

    Each `take_frames` frames of a latent [t, c, h, w], by default all, are a clip by themselves.

    An image VAE decodes frame by frame. SVD's, which mixes frames, decodes chunks of `frames_per_chunk`, each equal
    to one batch of the host, and fades from one into the next over the `overlap` frames or more that both hold. One that
    compresses time goes to the host's own decode as a whole. Out of memory, SVD's goes on with the clip off the device; then,
    and with an image VAE at once, the host's OOM_EXCEPTION says what to do: the host's own answer to that, tiles, changes
    the result. Raises ValueError where no frame of a chunk is new.
    """
    if vae.latent_dim == 3:
        pixels = vae.decode(latent)
        return pixels.reshape(-1, *pixels.shape[-3:])
    if latent.ndim == 5:
        latent = latent.movedim(2, 1).flatten(0, 1)
    decoder = find_video_decoder(vae.first_stage_model)
    try:
        if decoder is None:
            return _decode_images(vae, latent)
        return _decode_video(vae, decoder, latent, take_frames or len(latent), frames_per_chunk, overlap)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise management.OOM_EXCEPTION(
            f"{DECODE_VIDEO}: out of memory on {vae.device} with a latent of {latent.shape[-1]} x {latent.shape[-2]}. Make the "
            f"video's width and height smaller, or lower frames_per_chunk."
        ) from error


def _decode_images(vae, latent):
    _load(vae, _frame_bytes(vae, latent))
    progress = comfy.utils.ProgressBar(len(latent))

    def decode(frame):
        pixels = vae.first_stage_model.decode(frame)
        progress.update(1)
        return pixels

    return _in_chunks(vae, latent, range(len(latent)), 1, decode)


def _decode_video(vae, decoder, latent, take_frames, frames_per_chunk, overlap):
    if overlap >= frames_per_chunk < take_frames:
        raise ValueError(
            f"{DECODE_VIDEO}: overlap {overlap} leaves nothing of chunks of {frames_per_chunk} frames; expected less than "
            f"{frames_per_chunk}."
        )
    length = min(frames_per_chunk, take_frames)
    needed = _frame_bytes(vae, latent) + clip_bytes(decoder, latent[:length], vae.vae_dtype)
    _load(vae, needed)
    storages = _storages(vae, needed)
    in_take = chunk_starts(take_frames, length, overlap)
    starts = [take + start for take in range(0, len(latent), take_frames) for start in in_take]
    progress = comfy.utils.ProgressBar(len(starts) * STAGES)

    def decode(chunk):
        before = progress.current

        def next_storage(_):
            if len(storages) == 1:
                return None
            del storages[0]
            logging.warning("%s: out of memory; going on with the clip on %s between layers.", DECODE_VIDEO, storages[0])
            progress.update_absolute(before)
            return storages[0]

        return until_it_fits(
            lambda storage: decode_frames(decoder, chunk, storage, tick=lambda: progress.update(1)), storages[0], next_storage
        )

    return _in_chunks(vae, latent, starts, length, decode)


def _storages(vae, needed):
    """Where a chunk may lie between layers, the fastest place first; the result is the same."""
    fits = vae.patcher.get_free_memory(vae.device) >= needed
    return [vae.device, vae.output_device] if fits and vae.device != vae.output_device else [vae.output_device]


def _in_chunks(vae, latent, starts, length, decode):
    """The pixels [t, h', w', c'] of the chunks that begin at `starts`, the later faded in where two overlap."""
    pixels, end = None, 0
    for start in starts:
        management.throw_exception_if_processing_interrupted()
        chunk = decode(latent[start:start + length].to(vae.device, vae.vae_dtype))
        chunk = vae.process_output(chunk.to(vae.output_device, torch.float32, copy=True)).movedim(1, -1)
        if pixels is None:
            pixels = chunk.new_empty(len(latent), *chunk.shape[1:])
        shared = end - start
        chunk[:shared] = torch.lerp(pixels[start:end], chunk[:shared], _fade(shared).to(chunk))
        end = start + len(chunk)
        pixels[start:end] = chunk
    return pixels


def chunk_starts(frames: int, length: int, overlap: int) -> list[int]:
    """First frames of as few chunks as cover the clip with at least `overlap` frames shared by neighbors, evenly spread."""
    if frames <= length:
        return [0]
    count = math.ceil((frames - overlap) / (length - overlap))
    return [round(index * (frames - length) / (count - 1)) for index in range(count)]


def _fade(frames):
    """Weights [frames, 1, 1, 1] of the later of two chunks where both hold a frame: small where one lacks its neighbors.

    The curve is Perlin's (Improving Noise, 2002); a straight line gives the ends, which are furthest off, too much.
    """
    position = (torch.arange(frames) + 0.5) / frames
    return (position ** 3 * (6 * position ** 2 - 15 * position + 10)).reshape(-1, 1, 1, 1)


def _frame_bytes(vae, latent):
    return vae.memory_used_decode(latent[:1].shape, vae.vae_dtype)


def _load(vae, needed):
    management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
