"""Decoding the latent of a clip with any VAE of the host, to the same pixels whatever memory is free."""

import contextlib
import logging
import math
import threading
from collections.abc import Callable

import comfy.model_management as management
import comfy.utils
import torch

from ..model.memory_budget import is_out_of_memory, until_it_fits
from ..node_names import DECODE_VIDEO
from ..sampling.lanes import NetworkCall, run_calls
from .vae_devices import on_device, vaes_on
from .video_decoder import STAGES, clip_bytes, decode_frames, find_video_decoder

AHEAD = 2  # chunks that are begun for each device before an earlier one is in: those that are done wait in memory
DECODER = "temporal_unet.decoder"  # key of the ChunkDecoder of a lane


def decode_clip(
    vae, latent: torch.Tensor, frames_per_chunk: int, overlap: int, take_frames: int | None = None, devices: list | None = None
) -> torch.Tensor:
    """latent [t, c, h, w] or [b, c, t, h, w] to pixels [frames, h', w', c'] from 0 to 1 on the host's intermediate device.

    Each `take_frames` frames of a latent [t, c, h, w], by default all, are a clip by themselves. An image VAE decodes frame by
    frame. SVD's, which mixes frames, decodes chunks of `frames_per_chunk`, each equal to one batch of the host, and fades from one
    into the next over the `overlap` frames or more that both hold. One that compresses time goes to the host's own decode as a
    whole. Frames or chunks are shared out to `devices`, as `vaes_on` says, with the same result.

    Out of memory, SVD's goes on with the clip off the device; then, and with an image VAE at once, the host's OOM_EXCEPTION says
    what to do: the host's own answer to that, tiles, changes the result. Raises ValueError where no frame of a chunk is new.
    """
    if vae.latent_dim == 3:
        pixels = vae.decode(latent)
        return pixels.reshape(-1, *pixels.shape[-3:])
    if latent.ndim == 5:
        latent = latent.movedim(2, 1).flatten(0, 1)
    video = find_video_decoder(vae.first_stage_model) is not None
    take_frames = take_frames or len(latent)
    length = min(frames_per_chunk, take_frames) if video else 1
    if video and overlap >= frames_per_chunk < take_frames:
        raise ValueError(
            f"{DECODE_VIDEO}: overlap {overlap} leaves nothing of chunks of {frames_per_chunk} frames; expected less than "
            f"{frames_per_chunk}."
        )
    in_take = chunk_starts(take_frames, length, overlap if video else 0)
    starts = [take + start for take in range(0, len(latent), take_frames) for start in in_take]
    return _decode(vae, latent, starts, length, devices or [])


def _decode(vae, latent, starts, length, devices):
    vaes = vaes_on(vae, devices, len(starts))
    needed = ChunkDecoder.bytes_for(vae, latent[:length])
    with _memory_said(vae, latent):
        management.load_models_gpu(
            [each.patcher for each in vaes], memory_required=needed, force_full_load=vae.disable_offload)
    decoders = [ChunkDecoder(each, needed) for each in vaes]
    if len(vaes) > 1:
        logging.info(
            "%s: %d chunks on %s; each holds the VAE, %.0f MiB, and up to %.0f MiB for its chunk.", DECODE_VIDEO, len(starts),
            ", ".join(str(each.device) for each in vaes), vae.patcher.model_size() / 2**20, needed / 2**20)
    chunks = Chunks(latent, starts, length, decoders)
    run_calls([{DECODER: decoder} for decoder in decoders], chunks, stop=chunks.stopped.set)
    return chunks.pixels


@contextlib.contextmanager
def _memory_said(vae, latent):
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise management.OOM_EXCEPTION(
            f"{DECODE_VIDEO}: out of memory on {vae.device} with a latent of {latent.shape[-1]} x {latent.shape[-2]}. Make the "
            f"video's width and height smaller, or lower frames_per_chunk."
        ) from error


class ChunkDecoder:
    """Decodes chunks on the device of a VAE, or a frame of an image VAE; `needed` bytes for each besides the weights."""

    def __init__(self, vae, needed: int):
        self.vae = vae
        self.network = find_video_decoder(vae.first_stage_model)
        self.storages = _storages(vae, needed)
        self.stages = 1 if self.network is None else STAGES

    @staticmethod
    def bytes_for(vae, chunk: torch.Tensor) -> int:
        """Bytes that chunk [n, c, h, w] needs besides the VAE's weights."""
        decoder = find_video_decoder(vae.first_stage_model)
        frame = vae.memory_used_decode(chunk[:1].shape, vae.vae_dtype)
        return frame if decoder is None else frame + clip_bytes(decoder, chunk, vae.vae_dtype)

    def decode(self, chunk: torch.Tensor, tick: Callable[[], None], restart: Callable[[], None]) -> torch.Tensor:
        """chunk [n, c, h, w] to pixels [n, h', w', c'] from 0 to 1. `tick` is called `stages` times, `restart` to begin again."""
        vae, network = self.vae, self.network
        chunk = chunk.to(vae.device, vae.vae_dtype)
        if network is None:
            pixels = vae.first_stage_model.decode(chunk)
            tick()
        else:
            def next_storage(_):
                if len(self.storages) == 1:
                    return None
                del self.storages[0]
                logging.warning(
                    "%s: out of memory; going on with the clip on %s between layers.", DECODE_VIDEO, self.storages[0])
                restart()
                return self.storages[0]

            pixels = until_it_fits(lambda storage: decode_frames(network, chunk, storage, tick), self.storages[0], next_storage)
        return vae.process_output(pixels.to(vae.output_device, torch.float32, copy=True)).movedim(1, -1)


def _storages(vae, needed):
    """Where a chunk may lie between layers, the fastest place first; the result is the same."""
    fits = vae.patcher.get_free_memory(vae.device) >= needed
    return [vae.device, vae.output_device] if fits and vae.device != vae.output_device else [vae.output_device]


class Chunks:
    """The calls that decode the chunks of `length` frames at `starts`, and `pixels` [t, h', w', c'], the later faded in.

    With several decoders, whose calls run in threads, progress is reported when a chunk is done, else at each of its stages. Once
    `stopped`, a chunk ends at its next stage.
    """

    def __init__(self, latent: torch.Tensor, starts: list[int], length: int, decoders: list[ChunkDecoder]):
        self.latent, self.starts, self.length = latent, starts, length
        self.several, self.ahead, self.stages = len(decoders) > 1, AHEAD * len(decoders), decoders[0].stages
        self.progress = comfy.utils.ProgressBar(len(starts) * self.stages)
        self.stopped = threading.Event()
        self.pixels: torch.Tensor | None = None
        self.begun = self.joined = self.end = 0
        self.waiting: dict[int, torch.Tensor] = {}

    def next_call(self) -> NetworkCall | None:
        if self.begun == min(len(self.starts), self.joined + self.ahead):
            return None
        index, start = self.begun, self.starts[self.begun]
        self.begun += 1

        def run(lane):
            decoder = lane[DECODER]
            before, chunk = self.progress.current, self.latent[start:start + self.length]
            with on_device(decoder.vae.device) if self.several else contextlib.nullcontext(), _memory_said(decoder.vae, chunk):
                return decoder.decode(chunk, self._tick, lambda: self._restart(before))

        def done(chunk):
            if self.several:
                self.progress.update(self.stages)
            self.waiting[index] = chunk
            while self.joined in self.waiting:
                self._join(self.starts[self.joined], self.waiting.pop(self.joined))
                self.joined += 1

        return NetworkCall(run, done)

    def _tick(self):
        if self.stopped.is_set():
            raise management.InterruptProcessingException
        if not self.several:
            self.progress.update(1)

    def _restart(self, before):
        if not self.several:
            self.progress.update_absolute(before)

    def _join(self, start, chunk):
        if self.pixels is None:
            self.pixels = chunk.new_empty(len(self.latent), *chunk.shape[1:])
        shared = self.end - start
        chunk[:shared] = torch.lerp(self.pixels[start:self.end], chunk[:shared], _fade(shared).to(chunk))
        self.end = start + len(chunk)
        self.pixels[start:self.end] = chunk


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
