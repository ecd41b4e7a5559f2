"""SVD Temporal UNet Sampler: denoises a clip with guidance that changes over its frames."""

import logging

import comfy.samplers
import torch
from comfy_api.latest import io

from .bridge.inputs.curve import parse_curve
from .bridge.inputs.ranges import finite, in_order
from .bridge.model.trained_length import automatic_length
from .bridge.node_names import SVD_SAMPLER as NODE
from .bridge.sampling.guidance import FrameGuider, frame_scales, is_video_model, sample
from .bridge.sampling.windows import with_windows

SVD_WIDTH = 320  # model channels of the real SVD; a miniature has fewer
TRAINED = 1024, 576  # pixels
SHORTEST = 7  # frames, half of what SVD was trained on
TOO_LONG = 1.5  # times the trained length


class SVDSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TemporalUNetSVDSampler",
            display_name=NODE,
            category="Temporal UNet/Video",
            description="Denoises a video latent with a model of the Stable Video Diffusion family.",
            search_aliases=["svd", "stable video diffusion", "animate", "svd sampler", "video sampler", "long video", "loop"],
            inputs=[
                io.Model.Input("model", tooltip="A model of the SVD family, from Load UNet or the host's own loaders."),
                io.Conditioning.Input("positive", tooltip="From SVD Image to Video."),
                io.Conditioning.Input("negative", tooltip="From SVD Image to Video."),
                io.Latent.Input("latent_image", tooltip="The latent of the clip; its length is the number of frames."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                    tooltip="Seed of the noise: another seed, another motion.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps. 20 to 30 is usual."),
                io.Float.Input(
                    "min_cfg", default=1.0, min=0.0, max=100.0, step=0.1,
                    tooltip="Guidance scale of the first frame (and of the last with triangle); not used with constant and curve.",
                ),
                io.Float.Input(
                    "max_cfg", default=2.5, min=0.0, max=100.0, step=0.1,
                    tooltip="Guidance scale of the last frame (linear), the middle one (triangle) or all (constant). "
                    "Higher keeps closer to the image; too high burns colors.",
                ),
                io.Combo.Input(
                    "guidance", options=["linear", "triangle", "constant", "curve"], default="linear",
                    tooltip="How guidance changes over the clip: rising, rising and falling (good for chaining clips), "
                    "the same throughout, or as guidance_curve says.",
                ),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler",
                    tooltip="The integration method. euler is what SVD was published with.",
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="karras",
                    tooltip="How noise falls from step to step. karras is what SVD was published with.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Share of the noise to start from: below 1 the given latent shows through.",
                ),
                io.String.Input(
                    "guidance_curve", default="0:1.0, 1:2.5", advanced=True, optional=True,
                    tooltip="For guidance = curve: position:scale points over the clip, 0 first frame, 1 last, such as "
                    "0:1.0, 0.5:3, 1:1.0.",
                ),
                io.Float.Input(
                    "guidance_start", default=0.0, min=0.0, max=1.0, step=0.01, advanced=True, optional=True,
                    tooltip="Share of the steps after which guidance begins. Unguided steps leave out the negative: half the work.",
                ),
                io.Float.Input(
                    "guidance_end", default=1.0, min=0.0, max=1.0, step=0.01, advanced=True, optional=True,
                    tooltip="Share of the steps after which guidance ends. Unguided steps leave out the negative: half the work.",
                ),
                io.Int.Input(
                    "window_frames", default=0, min=0, max=4096, advanced=True, optional=True,
                    tooltip="Longer clips are worked on in windows of this many frames. 0: as many as the model was trained on "
                    "(25 where the file does not say).",
                ),
                io.Int.Input(
                    "window_overlap", default=6, min=0, max=4096, advanced=True, optional=True,
                    tooltip="Frames that neighboring windows share; more makes smoother joints and takes longer. With "
                    "window_frames 0 at most half of a window.",
                ),
                io.Boolean.Input(
                    "closed_loop", default=False, advanced=True, optional=True,
                    tooltip="In clips longer than a window: windows also run over the end into the start, so that the clip loops.",
                ),
                io.Boolean.Input(
                    "keep_colors", default=True, advanced=True, optional=True,
                    tooltip="In clips longer than a window: each window starts with the colors and contrast of the image, or "
                    "they would grow from window to window. Off where the scene is to become brighter, darker or another.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="samples")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, seed, steps, min_cfg, max_cfg, guidance, sampler_name, scheduler,
        denoise=1.0, guidance_curve="0:1.0, 1:2.5", guidance_start=0.0, guidance_end=1.0,
        window_frames=0, window_overlap=6, closed_loop=False, keep_colors=True,
        window_noise=None,  # an input until 0.1.1, which the host still passes on where an old prompt links it
    ) -> io.NodeOutput:
        finite(
            NODE, min_cfg=min_cfg, max_cfg=max_cfg, denoise=denoise, guidance_start=guidance_start, guidance_end=guidance_end
        )
        in_order(NODE, guidance_start=guidance_start, guidance_end=guidance_end)
        frames = _check(model, positive, latent_image["samples"])
        curve = parse_curve(guidance_curve, f"{NODE}: guidance_curve") if guidance == "curve" else []
        model = _windowed(
            model, frames, window_frames, window_overlap, closed_loop=closed_loop, keep_colors=keep_colors,
        )
        _warn_far_from_training(model, latent_image["samples"])
        guider = FrameGuider(
            model, frame_scales(guidance, min_cfg, max_cfg, curve, frames), guidance_start, guidance_end
        )
        guider.set_conds(positive, negative)
        samples = sample(
            guider, latent_image, seed=seed, steps=steps, sampler_name=sampler_name, scheduler=scheduler, denoise=denoise
        )
        if not torch.isfinite(samples).all():
            raise ValueError(
                f"{NODE}: the result holds NaN or infinite values, which would decode to black frames. Load the UNet "
                f"with weight_dtype bf16 or fp32, and check that nothing else patches the model."
            )
        return io.NodeOutput({**latent_image, "samples": samples})


def _check(model, positive, latent) -> int:
    """The number of frames. Raises ValueError where this node cannot take the model, the conditioning or the latent."""
    if not is_video_model(model):
        raise ValueError(
            f"{NODE}: the model is {type(model.model.model_config).__name__}, expected one of the Stable Video Diffusion "
            f"family. Use the KSampler node for image models."
        )
    if latent.ndim != 4 or latent.shape[1] != 4:
        raise ValueError(
            f"{NODE}: latent_image has shape {list(latent.shape)}, expected [frames, 4, height/8, width/8]. "
            f"Connect the latent of SVD Image to Video."
        )
    if latent.shape[0] == 0:
        raise ValueError(f"{NODE}: latent_image holds 0 frames, expected at least 1.")
    if not torch.isfinite(latent).all():
        raise ValueError(f"{NODE}: latent_image holds NaN or infinite values; an earlier node went wrong.")
    width, expected = positive[0][0].shape[-1], model.model.model_config.unet_config["context_dim"]
    if width != expected:
        raise ValueError(
            f"{NODE}: positive has width {width}, expected the image embedding of width {expected}. "
            f"Connect SVD Image to Video, not a text prompt."
        )
    return latent.shape[0]


def _warn_far_from_training(model, latent):
    """Logs a warning where the size, or the number of frames that the MODEL sees at once, is far from its training."""
    if model.model.model_config.unet_config["model_channels"] != SVD_WIDTH:
        return
    frames, _, height, width = latent.shape
    share = height * width / (TRAINED[0] * TRAINED[1] / 64)
    if not 0.4 <= share <= 2:
        logging.warning(
            "%s: the video is %dx%d, SVD was trained on %dx%d: expect little or broken motion. Keep near that area, and "
            "scale the result.", NODE, width * 8, height * 8, *TRAINED,
        )
    windows = model.model_options.get("context_handler")  # ours, or those of the host's own node
    at_once = frames if windows is None else min(frames, windows.context_length)
    if at_once < SHORTEST:
        logging.warning(
            "%s: %d frames at once are fewer than SVD was trained on (14 or 25): expect little motion. Make 14 and keep "
            "some, with window_frames 0.", NODE, at_once,
        )
    trained = automatic_length(model, at_once)
    if at_once > TOO_LONG * trained:
        logging.warning(
            "%s: %d frames at once are more than the %d that the model was trained on: expect blurred or broken motion. Set "
            "window_frames to 0 (or the Context Windows node to that length), which works in windows.", NODE, at_once, trained,
        )


def _windowed(model, frames, window_frames, window_overlap, **options):
    """The model with windows where the clip is longer than one; those of the host's own node stay. `options`: `with_windows`."""
    if window_frames == 0 and "context_handler" in model.model_options:
        return model
    length = window_frames or automatic_length(model, frames)
    if length >= frames:
        return model
    if window_frames == 0:
        window_overlap = min(window_overlap, length // 2)
    _check_overlap(length, window_overlap)
    return with_windows(model, length, window_overlap, **options)


def _check_overlap(window_frames, window_overlap):
    if window_overlap >= window_frames:
        raise ValueError(
            f"{NODE}: window_overlap {window_overlap} leaves nothing of windows of {window_frames} frames; expected "
            f"less than {window_frames}."
        )
