"""Bad input ends a prompt with one error that names the node or file, what was found and what was expected; the server lives on."""

import re

import pytest

import dev
from support.prompts import changed, image_model, node, only, svd, with_control

pytestmark = pytest.mark.usefixtures("alive")
SD15, SDXL = "untrained_sd15.safetensors", "untrained_sdxl.safetensors"
CONDITIONING, SAMPLER = "TemporalUNetSVDConditioning", "TemporalUNetSVDSampler"
CHECKPOINT_LOADER, LORA_LOADER = "TemporalUNetCheckpointLoader", "TemporalUNetLoraLoader"
CONTROLNET_LOADER, APPLY = "TemporalUNetControlNetLoader", "TemporalUNetApplyControlNetResiduals"


def svd_with(class_type: str, extra: dict | None = None, **inputs) -> dict:
    return {**changed(svd(), class_type, **inputs), **(extra or {})}


def unet(name: str) -> dict:
    return svd_with("TemporalUNetLoader", unet_name=name)


def checkpoint(name: str) -> dict:
    return {"1": node(CHECKPOINT_LOADER, ckpt_name=name), "2": node("PreviewAny", source=["1", 4])}


def controlled_svd(extra: dict | None = None, **inputs) -> dict:
    prompt = svd()
    return {**with_control(prompt, only(prompt, SAMPLER), **inputs), **(extra or {})}


def controlled_image(unet_name: str, context: int, extra: dict | None = None, **inputs) -> dict:
    return {**with_control(image_model(unet_name, context), "sampler", **inputs), **(extra or {})}


def controlnet(name: str) -> dict:
    return controlled_svd({"net": node(CONTROLNET_LOADER, control_net_name=name)}, control_net=["net", 0])


def lora(name: str) -> dict:
    prompt = svd()
    return {"lora": node(LORA_LOADER, model=[only(prompt, "TemporalUNetLoader"), 0], lora_name=name, strength_model=1.0),
            **changed(prompt, SAMPLER, model=["lora", 0])}


def options(**inputs) -> dict:
    given = {
        "window_frames": 0, "window_overlap": 6, "closed_loop": False, "keep_colors": True, "guidance_start": 0.0,
        "guidance_end": 1.0,
    }
    return svd_with(SAMPLER, {"options": node("TemporalUNetVideoOptions", **{**given, **inputs})}, options=["options", 0])


PROBE_IMAGE = {"probe": node("ProbeImage")}
NO_ENCODER = {"checkpoint": node("ImageOnlyCheckpointLoader", ckpt_name=SD15)}
RUN_TIME_FAULTS = {  # name -> (prompt, node that reports it, what its message must say)
    "SD1 ControlNet on SVD": (
        controlled_svd(), SAMPLER,
        [
            "Apply ControlNet Residuals: this ControlNet is for Stable Diffusion 1, the model is Stable Video Diffusion",
            "Load a ControlNet",
        ],
    ),
    "SD1 ControlNet on SDXL": (
        controlled_image(SDXL, 2048), "KSampler",
        ["Apply ControlNet Residuals", "is for Stable Diffusion 1", "the model is SDXL", "Load a ControlNet"],
    ),
    "linked curve of frame strengths": (
        controlled_image(SD15, 768, extra={"text": node("PrimitiveString", value="0:1, " * 4000)}, frame_strengths=["text", 0]),
        APPLY, ["^Apply ControlNet Residuals: frame_strengths", "'0:1, 0:1.*…'"],
    ),
    "NaN as strength": (
        controlled_image(SD15, 768, strength=float("nan")), APPLY,
        ["^Apply ControlNet Residuals: strength is NaN, expected a finite number"],
    ),
    "latent of 16 channels": (
        svd_with(SAMPLER, {"sd3": node("EmptySD3LatentImage", width=64, height=64, batch_size=3)}, latent_image=["sd3", 0]),
        SAMPLER,
        ["SVD Temporal UNet Sampler: latent_image", r"\[3, 16, 8, 8\]", r"expected \[frames, 4, "],
    ),
    "latent of 0 frames": (
        svd_with(SAMPLER, {"probe": node("ProbeLatent")}, latent_image=["probe", 0]), SAMPLER,
        ["SVD Temporal UNet Sampler: latent_image", "0 frames", "at least 1"],
    ),
    "SD1 model in the SVD sampler": (
        unet(SD15), SAMPLER,
        ["SVD Temporal UNet Sampler", "Stable Diffusion 1|SD ?1", "expected .*Stable Video Diffusion", "KSampler"],
    ),
    "text prompt in the SVD sampler": (
        svd_with(SAMPLER, {"text": node("ProbeConditioning", width=768)}, positive=["text", 0]), SAMPLER,
        ["SVD Temporal UNet Sampler: positive", "width 768", "expected .*1024", "SVD Image to Video"],
    ),
    "checkpoint without image encoder": (
        svd_with(CONDITIONING, NO_ENCODER, clip_vision=["checkpoint", 1]), CONDITIONING,
        ["SVD Image to Video: clip_vision", "no image encoder", "Load CLIP Vision"],
    ),
    "NaN in the photo": (
        svd_with(CONDITIONING, PROBE_IMAGE, init_image=["probe", 0]), CONDITIONING,
        ["SVD Image to Video: init_image", "NaN", "expected values from 0 to 1"],
    ),
    "linked curve of guidance": (
        svd_with(
            SAMPLER, {"text": node("PrimitiveString", value="0:1, banana")}, guidance="curve", guidance_curve=["text", 0]
        ), SAMPLER,
        ["SVD Temporal UNet Sampler: guidance_curve", "'banana'", "expected position:value points"],
    ),
    "LoRA for another model": (
        lora("flux.safetensors"), LORA_LOADER,
        ["flux.safetensors: none of its 1 layers can act on this model", "Load the model that it was made for"],
    ),
    "windows that only overlap": (
        svd_with(SAMPLER, window_frames=2, window_overlap=2), SAMPLER,
        ["SVD Temporal UNet Sampler: window_overlap 2", "windows of 2 frames", "less than 2"],
    ),
}
REFUSALS = {  # name -> (prompt, what the refusal must say)
    "0 frames": (svd_with(CONDITIONING, video_frames=0), [CONDITIONING, "video_frames", "smaller than min"]),
    "unknown file": (
        unet("no_such.safetensors"), ["TemporalUNetLoader", "unet_name", "Value not in list: 'no_such.safetensors' not in"],
    ),
    "unknown checkpoint": (checkpoint("no_such.safetensors"), [CHECKPOINT_LOADER, "ckpt_name", "'no_such.safetensors' not in"]),
    "unknown ControlNet": (controlnet("no_such.pth"), [CONTROLNET_LOADER, "control_net_name", "'no_such.pth' not in"]),
    "a number as file": (unet(5), ["TemporalUNetLoader", "unet_name", "Value not in list: 5 not in"]),
    "truncated file": (
        unet("truncated.safetensors"),
        ["TemporalUNetLoader", "unet_name - truncated.safetensors", "cut off", "Download it again"],
    ),
    "web page": (
        unet("web_page.safetensors"),
        ["TemporalUNetLoader", "web_page.safetensors", "web page", r"\.safetensors file itself"],
    ),
    "web page as checkpoint": (
        checkpoint("web_page_checkpoint.safetensors"),
        [CHECKPOINT_LOADER, "ckpt_name - web_page_checkpoint.safetensors: it is a web page", r"\.safetensors file itself"],
    ),
    "LoRA": (unet("lora.safetensors"), ["TemporalUNetLoader", "lora.safetensors", "a LoRA, not a UNet", "LoRA loader"]),
    "unknown LoRA": (lora("no_such.safetensors"), [LORA_LOADER, "lora_name", "'no_such.safetensors' not in"]),
    "LoRA: list": (lora("list.pt"), [LORA_LOADER, "lora_name - list.pt: it holds a list of tensors without names"]),
    "VAE": (unet("vae.safetensors"), ["TemporalUNetLoader", "vae.safetensors", "a VAE, not a UNet", "Load VAE"]),
    "missing key": (
        unet("missing_key.safetensors"),
        ["TemporalUNetLoader", "missing_key.safetensors", "1 missing", r"time_embed\.2\.bias", "damaged"],
    ),
    "misshaped key": (
        unet("misshaped_key.safetensors"),
        ["TemporalUNetLoader", "misshaped_key.safetensors", "1 of another shape", r"out\.0\.weight is \[7\] instead of \[64\]"],
    ),
    "ControlNet: web page": (
        controlnet("web_page.pth"), [CONTROLNET_LOADER, r"web_page\.pth: it is a web page", r"the \.pth file itself"],
    ),
    "ControlNet: cut off": (
        controlnet("cut_off.pth"),
        [CONTROLNET_LOADER, r"- cut_off\.pth cannot be read as a PyTorch file \(it is cut off\)", "Download it again"],
    ),
    "ControlNet: damaged": (
        controlnet("damaged.bin"),
        [CONTROLNET_LOADER, r"- damaged\.bin cannot be read as a PyTorch file \(it is damaged", "Download it again"],
    ),
    "ControlNet: list": (
        controlnet("list.pt"), [CONTROLNET_LOADER, "control_net_name - list.pt holds no ControlNet", "Choose a ControlNet"],
    ),
    "curve of frame strengths": (
        controlled_image(SD15, 768, frame_strengths="0:1, half:2"),
        [
            APPLY, "frame_strengths - frame_strengths: found 'half:2'.*: its position is not a number",
            "expected position:value points",
        ],
    ),
    "curve that overflows": (
        controlled_image(SD15, 768, frame_strengths="0:1e308"),
        [APPLY, "frame_strengths", "value 1e308 is not from -10000 to 10000"],
    ),
    "control that ends before it starts": (
        controlled_image(SD15, 768, start_percent=0.6, end_percent=0.4),
        [APPLY, "start_percent - start_percent 0.6 lies after end_percent 0.4"],
    ),
    "control that begins before the sampling": (
        controlled_image(SD15, 768, start_percent=-0.1),
        [APPLY, "start_percent - start_percent is -0.1, expected a number from 0 to 1"],
    ),
    "NaN as augmentation": (
        svd_with(CONDITIONING, augmentation_level=float("nan")),
        [CONDITIONING, "augmentation_level - augmentation_level is NaN, expected a finite number"],
    ),
    "too much augmentation": (
        svd_with(CONDITIONING, augmentation_level=11.0),
        [CONDITIONING, "augmentation_level - augmentation_level is 11, expected a number from 0 to 10"],
    ),
    "unknown guidance": (svd_with(SAMPLER, guidance="spiral"), [SAMPLER, "guidance", "spiral", "linear"]),
    "curve of guidance": (
        svd_with(SAMPLER, guidance="curve", guidance_curve="0:1, banana"),
        [SAMPLER, "guidance_curve - guidance_curve: found 'banana'", "expected position:value points"],
    ),
    "windows of Video Options": (
        options(window_frames=2, window_overlap=2),
        ["TemporalUNetVideoOptions", "window_overlap - window_overlap 2 leaves nothing of windows of 2 frames"],
    ),
    "text for a number of Video Options": (
        options(window_frames="many"), ["TemporalUNetVideoOptions", "window_frames", "Failed to convert .* INT value"],
    ),
    "text for a number of Apply": (
        controlled_image(SD15, 768, end_percent="late"), [APPLY, "end_percent", "Failed to convert .* FLOAT value"],
    ),
    "text for the augmentation": (
        svd_with(CONDITIONING, augmentation_level="much"),
        [CONDITIONING, "augmentation_level", "Failed to convert .* FLOAT value"],
    ),
    "vae left unconnected": (svd_with(CONDITIONING, vae=None), [CONDITIONING, "vae", "[Rr]equired"]),
}


@pytest.mark.parametrize("name", RUN_TIME_FAULTS)
def test_a_fault_is_reported_by_the_node_that_meets_it(server, name):
    prompt, node_type, expected = RUN_TIME_FAULTS[name]
    fault = server.fault(prompt)
    assert fault["node_type"] == node_type, fault["exception_message"]
    message = fault["exception_message"].strip()
    assert not [words for words in expected if not re.search(words, message)], message
    assert len(message) < 1000 and "Traceback" not in message and str(server.base) not in message, message


@pytest.mark.parametrize("name", REFUSALS)
def test_the_host_refuses_what_the_schema_rules_out(server, name):
    prompt, expected = REFUSALS[name]
    with pytest.raises(dev.ServerError) as refusal:
        server.queue(prompt)
    assert not [words for words in expected if not re.search(words, str(refusal.value))], str(refusal.value)
    named_twice = " - (SVD Image to Video|SVD Temporal|Video Options|Apply|Load ControlNet)"
    assert not re.search(f"{named_twice}|Exception when validating|{server.base}", str(refusal.value)), str(refusal.value)
