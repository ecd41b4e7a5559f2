"""SVD Temporal UNet Sampler: denoises a clip with guidance that changes over its frames."""

import comfy.samplers
import torch
from comfy_api.latest import io

from .bridge.control.pairing import family_name
from .bridge.info.model_files import quoted
from .bridge.inputs.curve import parse_curve
from .bridge.inputs.ranges import finite, passes
from .bridge.node_names import SVD_SAMPLER as NODE
from .bridge.sampling.guidance import FrameGuider, frame_scales, is_video_model
from .bridge.sampling.noise_levels import ALIGN_YOUR_STEPS, given, scheduled, schedulers
from .bridge.sampling.options import VideoOptions, decide
from .bridge.sampling.preview import FPS, fps_of
from .bridge.sampling.runs import sample
from .bridge.sampling.takes import joined, takes_of
from .bridge.sampling.training_range import warn_far_from_training
from .bridge.sampling.windows import windowed
from .bridge.vae.vae_devices import DEVICES, devices_of
from .socket_types import VideoOptions as VideoOptionsSocket
from .video_options import option_inputs

SHAPES = ["linear", "triangle", "constant", "curve"]
CURVE = "0:1.0, 1:2.5"
MOST_TAKES = 256


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
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps. 14 to 25 is usual."),
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
                    "guidance", options=SHAPES, default="linear",
                    tooltip="How guidance changes over the clip: rising, rising and falling (good for chaining clips), "
                    "the same throughout, or as guidance_curve says.",
                ),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler",
                    tooltip="The integration method. euler is what SVD was published with.",
                ),
                io.Combo.Input(
                    "scheduler", options=schedulers(), default=ALIGN_YOUR_STEPS,
                    tooltip="How noise falls from step to step. karras is what SVD was published with; align_your_steps, found for "
                    "SVD later, comes nearer to the finished video with fewer steps.",
                ),
                io.Float.Input(
                    "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Share of the noise to start from: below 1 the given latent shows through.",
                ),
                io.String.Input(
                    "guidance_curve", default=CURVE, optional=True,
                    tooltip="For guidance = curve: position:scale points over the clip, 0 first frame, 1 last, such as "
                    "0:1.0, 0.5:3, 1:1.0.",
                ),
                *_own_options(),
                VideoOptionsSocket.Input(
                    "options", optional=True,
                    tooltip="From Video Options: windows of long clips, loops, and the steps in which guidance acts.",
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True,
                    tooltip="Noise levels from a scheduler node. While connected, steps, scheduler and denoise do not count.",
                ),
                io.Int.Input(
                    "takes", default=1, min=1, max=MOST_TAKES, advanced=True, optional=True,
                    tooltip="How many videos to make of the same image, with the seeds seed, seed + 1, …, one after another in the "
                    "latent. Decode Video can take one out.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="samples")],
        )

    @classmethod
    def validate_inputs(cls, guidance=None, guidance_curve=None):
        """True, or what is wrong. A linked input is None: only the run knows it."""
        if guidance is None:
            return True
        return passes(NODE, lambda: _curve(guidance, CURVE if guidance_curve is None else guidance_curve))

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, seed, steps, min_cfg, max_cfg, guidance, sampler_name, scheduler,
        denoise=1.0, guidance_curve=CURVE, guidance_start=0.0, guidance_end=1.0, window_frames=0, window_overlap=6,
        closed_loop=False, keep_colors=True, options=None, sigmas=None, takes=1,
        window_noise=None,  # an input until 0.1.1, which the host still passes on where an old prompt links it
    ) -> io.NodeOutput:
        finite(NODE, min_cfg=min_cfg, max_cfg=max_cfg, denoise=denoise)
        own = VideoOptions(window_frames, window_overlap, closed_loop, keep_colors, guidance_start, guidance_end)
        options, options_node = decide(options, own)
        options.check_guidance(options_node)
        _check(model, positive, latent_image["samples"])
        takes = takes_of(latent_image, seed, takes)
        clip = takes[0].latent["samples"]
        frames = clip.shape[0]
        model = windowed(model, frames, options, options_node)
        warn_far_from_training(model, clip)
        scales = frame_scales(guidance, min_cfg, max_cfg, _curve(guidance, guidance_curve), frames)
        guider = FrameGuider(model, scales, options.guidance_start, options.guidance_end)
        guider.set_conds(positive, negative)
        if sigmas is None:
            levels = scheduled(model, steps, sampler_name, scheduler, denoise)
        else:
            levels = given(sigmas, model, clip)
        samples = sample(guider, takes, levels, sampler_name)
        if not torch.isfinite(samples).all():
            raise ValueError(
                f"{NODE}: the result holds NaN or infinite values, which would decode to black frames. Load the UNet "
                f"with weight_dtype bf16 or fp32, and check that nothing else patches the model."
            )
        about = {FPS: fps_of(positive[0][1]), DEVICES: devices_of(model)}
        return io.NodeOutput({**joined(latent_image, takes, samples), **about})


def _own_options():
    """The inputs that came before Video Options, in their old order; the editor hides those that hold their default."""
    inputs = {one.id: one for one in option_inputs(optional=True)}
    old = "guidance_start", "guidance_end", "window_frames", "window_overlap", "closed_loop", "keep_colors"
    return [inputs[name] for name in old]


def _curve(guidance, text):
    """The points of the curve, none for other shapes. Raises ValueError where `guidance` is no shape or the text no curve."""
    if guidance not in SHAPES:
        raise ValueError(f"{NODE}: guidance is {quoted(guidance)}, expected one of {', '.join(SHAPES)}.")
    return parse_curve(text, f"{NODE}: guidance_curve") if guidance == "curve" else []


def _check(model, positive, latent) -> None:
    """Raises ValueError where this node cannot take the model, the conditioning or the latent."""
    if not is_video_model(model):
        raise ValueError(
            f"{NODE}: the model is {family_name(model.model)}, expected one of the Stable Video Diffusion family. Use the "
            f"KSampler node for image models."
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
