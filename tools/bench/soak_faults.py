"""What users do wrong, for the soak: prompts that must end in one error, and what it must name."""

from random import Random

from support.prompts import node
from tools.bench import soak_prompts as good


def _plain() -> dict:
    """A video as simple as it gets."""
    return {
        "model": node("TemporalUNetLoader", unet_name=good.SVD, weight_dtype="default"),
        "vae": node("VAELoader", vae_name=good.VAE), **good.clip(3),
        "sampler": node(
            "TemporalUNetSVDSampler", model=["model", 0], positive=["clip", 0], negative=["clip", 1], latent_image=["clip", 2],
            seed=1, steps=1, min_cfg=1.0, max_cfg=1.5, guidance="linear", sampler_name="euler", scheduler="karras", denoise=1.0),
        "latent": node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/soak"),
    }


def _with(name: str, extra: dict | None = None, **inputs) -> dict:
    return good.with_inputs(_plain() | (extra or {}), name, **inputs)


def _between(class_type: str, **inputs) -> dict:
    """With a node between the MODEL and the sampler."""
    return _with("sampler", {"patch": node(class_type, model=["model", 0], **inputs)}, model=["patch", 0])


def _controlled(**inputs) -> dict:
    given = {"control_net": ["net", 0], "image": ["photo", 0], **inputs}
    apply = node(
        "TemporalUNetApplyControlNetResiduals", positive=["clip", 0], negative=["clip", 1], strength=1.0, start_percent=0.0,
        end_percent=1.0, frame_strengths="0:1.0", **{name: value for name, value in given.items() if value is not None})
    extra = {"net": node("TemporalUNetControlNetLoader", control_net_name=good.NET), "control": apply}
    return _with("sampler", extra, positive=["control", 0], negative=["control", 1])


def _foreign_net() -> dict:
    return good.with_inputs(_controlled(), "net", control_net_name=good.SD_NET)


def _residuals() -> dict:
    extra = {"file": node("TemporalUNetLoadControlNetResiduals", residuals_name=good.NO_RESIDUALS)}
    return _controlled(residuals=["file", 0], control_net=None, image=None) | extra


def _saved(**inputs) -> dict:
    given = {"filename_prefix": "bad/a", "format": "safetensors", "type": "fp16", **inputs}
    return {"model": _plain()["model"], "save": node("TemporalUNetSave", model=["model", 0], **given)}


FAULTS = {  # what -> (prompt, what the one error must name)
    "a file that is cut off": (_with("model", unet_name=good.CUT_OFF), [good.CUT_OFF, "cut off"]),
    "a file that is gone": (_with("model", unet_name="gone.safetensors"), ["unet_name", "gone.safetensors"]),
    "a ControlNet as a UNet": (_with("model", unet_name="../controlnet/" + good.NET), ["unet_name"]),
    "a ControlNet of another model": (_foreign_net(), ["Apply ControlNet Residuals", "Stable Diffusion 1"]),
    "a LoRA of another model": (
        _between("TemporalUNetLoraLoader", lora_name=good.FOREIGN_LORA, strength_model=1.0), [good.FOREIGN_LORA, "none of its 1"]),
    "a page as residuals": (_residuals(), ["Load ControlNet Residuals", good.NO_RESIDUALS, "web page"]),
    "a curve of no numbers": (_with("sampler", guidance="curve", guidance_curve="0:1, banana"), ["guidance_curve", "banana"]),
    "windows that only overlap": (_with("sampler", window_frames=2, window_overlap=2), ["window_overlap 2"]),
    "NaN as guidance": (_with("sampler", max_cfg=float("nan")), ["max_cfg is NaN"]),
    "a latent of 16 channels": (
        _with("sampler", {"sd3": node("EmptySD3LatentImage", width=64, height=64, batch_size=3)}, latent_image=["sd3", 0]),
        ["SVD Temporal UNet Sampler: latent_image", "[3, 16, 8, 8]"]),
    "a text for an image": (
        _with("sampler", {"text": node("SoakText", width=768, seed=1)}, positive=["text", 0]), ["Sampler: positive", "width 768"]),
    "an image model in the video sampler": (_with("model", unet_name=good.SD), ["SVD Temporal UNet Sampler", "KSampler"]),
    "a cache deeper than the network": (
        _between("TemporalUNetFeatureCache", threshold=0.3, depth=11), ["UNet Feature Cache", "depth is 11"]),
    "a GGUF type as safetensors": (_saved(type="Q4_0"), ["Save UNet", "Q4_0"]),
    "a name outside of the output folder": (_saved(filename_prefix="../../outside"), ["Save UNet", "../../outside"]),
}


def any_fault(rng: Random) -> tuple[str, dict, list[str]]:
    """(what, its prompt, what its error must name)."""
    what = rng.choice(list(FAULTS))
    return what, *FAULTS[what]
