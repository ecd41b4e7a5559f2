"""Decode Video: the latent of a clip to its frames, the same on every machine."""

import torch
from comfy_api.latest import io

from .bridge.node_names import DECODE_VIDEO as NODE
from .bridge.sampling.decoded_preview import show_decoded
from .bridge.sampling.takes import frames_of_takes
from .bridge.vae.decode import decode_clip
from .bridge.vae.vae_devices import DEVICES


class DecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetDecodeVideo",
            display_name=NODE,
            category="Temporal UNet/Video",
            description="Decodes the latent of a video to its frames, to the same result whatever memory is free.",
            search_aliases=["vae decode video", "svd decode", "latent to video"],
            inputs=[
                io.Latent.Input("samples", tooltip="The latent of the clip, from a sampler."),
                io.Vae.Input("vae", tooltip="The VAE of the checkpoint that made the latent. SVD's own flickers least."),
                io.Int.Input(
                    "frames_per_chunk", default=32, min=1, max=4096, advanced=True, optional=True,
                    tooltip="SVD's VAE only: clips up to this many frames are decoded in one piece, longer ones in overlapping "
                    "chunks. More keeps light and color steadier over long clips and takes more memory.",
                ),
                io.Int.Input(
                    "overlap", default=8, min=0, max=4096, advanced=True, optional=True,
                    tooltip="Frames that neighboring chunks share and fade over; more makes smoother joints and takes longer.",
                ),
                io.Int.Input(
                    "take", default=0, min=0, max=4096, advanced=True, optional=True,
                    tooltip="Which take to decode where the sampler has made several: 1 is the first, 0 all, one after another.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def execute(cls, samples, vae, frames_per_chunk=32, overlap=8, take=0) -> io.NodeOutput:
        latent = samples["samples"]
        if latent.is_nested:  # images and sound, in this order
            latent = latent.unbind()[0]
        _check(vae, latent)
        takes, frames = 1, None
        if latent.ndim == 4:
            frames = frames_of_takes(NODE, samples)
            takes = len(latent) // frames
        if take > takes:
            raise ValueError(f"{NODE}: take is {take}, but samples holds {takes}. Set take from 1 to {takes}, or to 0 for all.")
        if take and takes > 1:
            latent = latent[(take - 1) * frames:take * frames]
        images = decode_clip(vae, latent, frames_per_chunk, overlap, frames, samples.get(DEVICES))
        show_decoded(images, samples, takes, take)
        return io.NodeOutput(images)


def _check(vae, latent):
    if vae is None or vae.first_stage_model is None:
        raise ValueError(f"{NODE}: vae is empty: the checkpoint brought none. Load one with Load VAE.")
    dimensions = {2: (4, 5), 3: (5,)}.get(vae.latent_dim, ())
    if latent.ndim not in dimensions or latent.shape[1] != vae.latent_channels:
        frames = "1, {}, frames" if vae.latent_dim == 3 else "frames, {}"
        raise ValueError(
            f"{NODE}: samples has shape {list(latent.shape)}, this VAE decodes [{frames.format(vae.latent_channels)}, height, "
            f"width]. Connect the VAE of the checkpoint that made the latent."
        )
    if latent.numel() == 0:
        raise ValueError(f"{NODE}: samples holds 0 frames, expected at least 1.")
    if not torch.isfinite(latent).all():
        raise ValueError(
            f"{NODE}: samples holds NaN or infinite values, which would decode to black frames; an earlier node went wrong."
        )
