"""SVD's video decoder over a whole clip in the working memory of one frame, equal to the host's decoding in one batch.

Its layers are of two kinds (`comfy/ldm/modules/temporal_ae.py`): some work within a frame, some at each pixel over time, with
group norms whose statistics span the clip. The first run frame by frame, the second on a few rows of all frames, so no layer
sees less than it would in one batch.
"""

from collections.abc import Callable
from functools import partial

import comfy.model_management as management
import torch
import torch.nn.functional as F
from comfy.ldm.modules.temporal_ae import VideoDecoder

from ....unet.group_norm import moments, residual_in_strips
from ..model.layer_weights import norm_affine

STAGES = 15  # fourteen blocks and the output layers, of which `decode_frames` reports each


def find_video_decoder(network: torch.nn.Module) -> VideoDecoder | None:
    """The decoder in a VAE's network that mixes frames, None where each frame is decoded by itself."""
    return next((module for module in network.modules() if isinstance(module, VideoDecoder)), None)


def clip_bytes(decoder: VideoDecoder, latent: torch.Tensor, dtype: torch.dtype) -> int:
    """What `decode_frames` keeps between layers for latent [t, 4, h, w]: at most its last channels at the video's size."""
    frames, _, height, width = latent.shape
    scale = 2 ** (decoder.num_resolutions - 1)
    return frames * height * scale * width * scale * decoder.norm_out.num_channels * management.dtype_size(dtype)


def decode_frames(decoder: VideoDecoder, latent: torch.Tensor, storage: torch.device, tick: Callable) -> torch.Tensor:
    """latent [t, 4, h, w], on the device and in the dtype to compute in, to pixels [t, 3, 8h, 8w] from -1 to 1 on `storage`.

    Between layers the clip lies on `storage`. `tick` is called `STAGES` times. A cancel acts within a frame: every layer of
    the host checks for it.
    """
    frames = list(latent)
    for layers, block in _blocks(decoder):
        layers = [*layers, partial(block, temb=None, skip_video=True)]
        seen = _each_frame(frames, layers, latent.device, storage, block.time_stack.in_layers[0].num_groups)
        _over_time(frames, block, seen, latent.device)
        tick()
    _each_frame(frames, [decoder.norm_out, F.silu, partial(decoder.conv_out, skip_video=True)], latent.device, storage)
    for rows in _strips(frames):
        _put(frames, rows, decoder.conv_out.time_mix_conv(_take(frames, rows, latent.device)))
    tick()
    return torch.stack(frames)


def _blocks(decoder):
    """(layers before it, `VideoResBlock`) in the order of the host's `Decoder.forward`."""
    yield [decoder.conv_in], decoder.mid.block_1
    yield [decoder.mid.attn_1], decoder.mid.block_2
    before = []
    for index, level in reversed(list(enumerate(decoder.up))):
        for block in level.block:
            yield before, block
            before = []
        if index:
            before = [level.upsample]


def _each_frame(frames, layers, device, storage, groups=1):
    """Runs the layers on every frame, in place; returns the moments of each result."""
    seen = []
    for index, frame in enumerate(frames):
        x = _run(layers, frame[None].to(device))
        seen.append(moments(x, groups))
        if frame.shape == x.shape[1:]:
            frame.copy_(x[0])
        else:
            frames[index] = x[0].to(storage)
    return seen


def _over_time(frames, block, seen, device):
    """The layers over time of a `VideoResBlock`, in place, where `seen` are the moments of the frames."""

    def strips():
        return ((rows, _take(frames, rows, device)) for rows in _strips(frames))

    alpha = block.get_alpha(bs=1).to(device)
    for rows, x, mixed in residual_in_strips(block.time_stack, seen, strips, frames[0].dtype, norm_affine):
        _put(frames, rows, alpha * mixed + (1.0 - alpha) * x)


def _run(layers, x):
    for layer in layers:
        x = layer(x)
    return x


# a few rows of all frames


def _strips(frames):
    """Slices of so many rows that those of all frames together are about one frame."""
    height = frames[0].shape[-2]
    step = max(1, height // len(frames))
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _take(frames, rows, device):
    """[1, c, t, rows, w] on the device."""
    return torch.stack([frame[:, rows] for frame in frames], 1)[None].to(device)


def _put(frames, rows, x):
    for frame, value in zip(frames, x[0].unbind(1), strict=True):
        frame[:, rows] = value
