"""API-mode prompts of a small size for the server tests: dictionaries as a user's script would post them."""

import copy
import itertools
import json
from pathlib import Path

WORKFLOWS_0_1 = Path(__file__).parent / "workflows_0_1"  # the example workflows of version 0.1, as they were: they run for ever
SIZE = 64  # pixels
FRAMES = 3
STEPS = 2
UNTRAINED = {  # what the tests put in place of the files that an example names: (class_type, input) -> file
    ("LoadImage", "image"): "photo.png",
    ("VAELoader", "vae_name"): "untrained_vae.safetensors",
    ("CLIPLoader", "clip_name"): "untrained_clip_l.safetensors",
    ("DualCLIPLoader", "clip_name1"): "untrained_clip_l.safetensors",
    ("DualCLIPLoader", "clip_name2"): "untrained_clip_g.safetensors",
    ("ControlNetLoader", "control_net_name"): "untrained_sd15_controlnet.safetensors",
    ("ImageOnlyCheckpointLoader", "ckpt_name"): "untrained_svd_checkpoint.safetensors",
    ("TemporalUNetControlNetLoader", "control_net_name"): "miniature_svd_controlnet_path.safetensors",
}
MINIATURE = "miniature_svd.safetensors"  # with an SVD ControlNet only one UNet fits: the one that it was trained for
UNTRAINED_UNETS = {
    "miniature_image_to_video": "untrained_svd.safetensors",
    "svd_checkpoint_image_to_video": "checkpoints/untrained_svd_checkpoint.safetensors",
    "svd_controlnet": MINIATURE,
    "controlnet_residuals_to_file": MINIATURE,
    "controlnet_residuals_from_file": MINIATURE,
    "sd15_controlnet": "untrained_sd15.safetensors",
    "sdxl_text_to_image": "untrained_sdxl.safetensors",
}
SMALL = {
    "TemporalUNetSVDConditioning": {"width": SIZE, "height": SIZE, "video_frames": FRAMES},
    "PrimitiveInt": {"value": FRAMES},
    "TemporalUNetSVDSampler": {"steps": STEPS},
    "EmptyLatentImage": {"width": SIZE, "height": SIZE},
    "KSampler": {"steps": STEPS},
}
_fresh_seeds = itertools.count(10**6)


def example(name: str) -> dict:
    """An example workflow of version 0.1 on untrained files, at a small size."""
    prompt = json.loads((WORKFLOWS_0_1 / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        inputs = node["inputs"]
        inputs.update(SMALL.get(node["class_type"], {}))
        inputs.update({key: file for (kind, key), file in UNTRAINED.items() if kind == node["class_type"]})
        if node["class_type"] == "TemporalUNetLoader":
            inputs["unet_name"] = UNTRAINED_UNETS[name]
    return prompt


def only(prompt: dict, class_type: str) -> str:
    """The id of the one node of this type."""
    [found] = [node_id for node_id, node in prompt.items() if node["class_type"] == class_type]
    return found


def changed(prompt: dict, class_type: str, **inputs) -> dict:
    """A copy with other values in the inputs of the one node of this type; an input of None is taken away."""
    prompt = copy.deepcopy(prompt)
    node = prompt[only(prompt, class_type)]
    node["inputs"].update(inputs)
    node["inputs"] = {name: value for name, value in node["inputs"].items() if value is not None}
    return prompt


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def svd(
    *, seed: int | None = None, width: int = SIZE, height: int = SIZE, frames: int = FRAMES, steps: int = STEPS, **sampler
) -> dict:
    """Photo to frames, saved as images because those lose nothing. Without a `seed`, one that the server has not seen."""
    prompt = example("miniature_image_to_video")
    prompt = changed(prompt, "TemporalUNetSVDConditioning", width=width, height=height, video_frames=frames)
    prompt = changed(prompt, "TemporalUNetSVDSampler", seed=next(_fresh_seeds) if seed is None else seed, steps=steps, **sampler)
    del prompt[only(prompt, "CreateVideo")]
    prompt[only(prompt, "SaveVideo")] = node("SaveImage", images=[only(prompt, "VAEDecode"), 0], filename_prefix="frames")
    return prompt


def image_model(unet_name: str, context: int, batch: int = 1) -> dict:
    """KSampler on an image model; its text is zeros, so that no text encoder has to be loaded. Ids: "positive", "sampler" ..."""
    return {
        "unet": node("TemporalUNetLoader", unet_name=unet_name, weight_dtype="default"),
        "vae": node("VAELoader", vae_name="untrained_vae.safetensors"),
        "photo": node("LoadImage", image="photo.png"),
        "positive": node("ProbeConditioning", width=context),
        "latent": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=batch),
        "sampler": node(
            "KSampler", model=["unet", 0], positive=["positive", 0], negative=["positive", 0], latent_image=["latent", 0],
            seed=next(_fresh_seeds), steps=STEPS, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="image"),
    }


def with_control(prompt: dict, sampler: str, **inputs) -> dict:
    """The prompt with a Stable Diffusion 1 ControlNet between the conditioning and the node `sampler`; `inputs` change its own."""
    prompt = copy.deepcopy(prompt)
    target = prompt[sampler]["inputs"]
    prompt["control_net"] = node("ControlNetLoader", control_net_name="untrained_sd15_controlnet.safetensors")
    prompt["control_photo"] = node("LoadImage", image="photo.png")
    prompt["control"] = node("TemporalUNetApplyControlNetResiduals", **{
        "positive": target["positive"], "negative": target["negative"], "control_net": ["control_net", 0],
        "image": ["control_photo", 0], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "frame_strengths": "0:1.0",
        **inputs,
    })
    target["positive"], target["negative"] = ["control", 0], ["control", 1]
    return prompt
