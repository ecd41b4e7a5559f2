"""Prompts of random settings for the soak, with every node of the pack, on its miniature and an untrained image model."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from random import Random

import torch
from PIL import Image
from safetensors.torch import save_file

from support.prompts import node
from tools.miniature.lay_out import lay_out
from tools.server import link_file

SVD, SD = "miniature_svd.safetensors", "untrained_sd15.safetensors"
NET, SD_NET = "miniature_svd_controlnet_path.safetensors", "untrained_sd15_controlnet.safetensors"
VAE, LORA, FOREIGN_LORA = "miniature_vae.safetensors", "soak.safetensors", "flux.safetensors"
FRAMES = 4  # of the residuals in the input folder
RESIDUALS, NO_RESIDUALS, CUT_OFF = "residuals.safetensors", "page.safetensors", "cut_off.safetensors"
DTYPES = ["default", "fp32", "fp16", "bf16", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]
SAVED = {  # kinds of files that Save UNet writes -> (format, type)
    "fp16": ("safetensors", "fp16"), "fp8": ("safetensors", "fp8"), "Q8_0": ("GGUF", "Q8_0"), "Q4_0": ("GGUF", "Q4_0"),
    "bf16": ("GGUF", "bf16"),
}
SAMPLERS = ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "ddim", "uni_pc"]
SCHEDULERS = ["karras", "align_your_steps", "normal", "simple", "sgm_uniform"]
CURVES = ["0:1.0, 1:2.5", "0:1，0.5：2；1：1", "0:1.5,", "0:0.5, 0.3:1.2, 0.31:2, 1:1"]


def lay_out_base(base: Path, untrained: Path) -> None:
    """Models, inputs and nodes of the soak in a server's base directory; `untrained`: a models folder with an image model."""
    models, images = base / "models", base / "input"
    lay_out(models)
    images.mkdir(parents=True)
    for name in ("first_frame.png", "path.png"):
        (models / name).rename(images / name)
    for folder, name in (("diffusion_models", SD), ("controlnet", SD_NET), ("vae", "untrained_vae.safetensors")):
        link_file(untrained / folder / name, models / folder / name)
    Image.new("RGB", (100, 60), "teal").save(images / "photo.png")
    (models / "loras").mkdir()
    save_file({"unet.mid_block.resnets.0.time_mixer.mix_factor.diff": torch.full((1,), 1.0)}, models / "loras" / LORA)
    save_file({"lora_unet_double_blocks_0_img_attn_qkv.diff": torch.ones(2)}, models / "loras" / FOREIGN_LORA)
    whole = (models / "diffusion_models" / SVD).read_bytes()
    (models / "diffusion_models" / CUT_OFF).write_bytes(whole[: len(whole) // 2])
    (images / NO_RESIDUALS).write_text("<!DOCTYPE html>" + " " * 200)
    nodes = base / "custom_nodes" / "soak_nodes.py"
    nodes.parent.mkdir()
    shutil.copy(Path(__file__).with_name("soak_nodes.py"), nodes)


def preparing() -> dict:
    """Writes each kind of UNet file, and residuals."""
    prompt = _svd_model("svd", SVD) | clip(FRAMES) | {"net": node("TemporalUNetControlNetLoader", control_net_name=NET)}
    for name, (form, kind) in SAVED.items():
        prompt[f"save {name}"] = node(
            "TemporalUNetSave", model=["model", 0], filename_prefix=f"diffusion_models/{name}", format=form, type=kind)
    prompt["residuals"] = computed_residuals()
    prompt["save residuals"] = node(
        "TemporalUNetSaveControlNetResiduals", residuals=["residuals", 0], filename_prefix="residuals/soak")
    return prompt


def saved_unet(name: str) -> str:
    """The name by which Load UNet finds a file that `preparing` wrote."""
    return f"{name}_00001_.{'gguf' if SAVED[name][0] == 'GGUF' else 'safetensors'}"


def computed_residuals() -> dict:
    return node("TemporalUNetComputeControlNetResiduals", model=["model", 0], positive=["clip", 0], control_net=["net", 0],
                image=["photo", 0], latent_image=["clip", 2])


def _svd_model(how: str, name: str, dtype: str = "default") -> dict:
    """The nodes "model" (a MODEL) and "vae" (a VAE in the output "vae"'s index 0)."""
    if how == "checkpoint":
        loader = node("TemporalUNetCheckpointLoader", ckpt_name=name, weight_dtype=dtype)
    else:
        loader = node("TemporalUNetLoader", unet_name=name, weight_dtype=dtype)
    return {"model": loader, "vae": node("VAELoader", vae_name=VAE)}


def clip(frames: int, **inputs) -> dict:
    """The nodes "photo" and "clip" of a video to be."""
    given = {"width": 64, "height": 64, "video_frames": frames, "motion_bucket_id": 127, "fps": 6, **inputs}
    return {"photo": node("LoadImage", image="first_frame.png"),
            "clip": node("TemporalUNetSVDConditioning", init_image=["photo", 0], vae=["vae", 0], **given)}


def video(rng: Random) -> dict:
    """A video by the SVD sampler; the latent is saved by the node "latent"."""
    frames = rng.choice([1, 2, 3, FRAMES, 6])
    how, name, dtype = rng.choice([
        ("svd", SVD, rng.choice(DTYPES)), ("checkpoint", SVD, rng.choice(DTYPES)),
        ("saved", saved_unet(rng.choice(list(SAVED))), "default"),
    ])
    prompt = _svd_model(how, name, dtype) | clip(
        frames, width=rng.choice([64, 48]), motion_bucket_id=rng.randint(1, 255), fps=rng.randint(1, 30),
        augmentation_level=rng.choice([0.0, 0.0, 0.3]), resize=rng.choice(["crop", "pad", "stretch"]))
    model = _patched(prompt, rng)
    positive, negative = _controlled(prompt, rng, frames)
    prompt["again"] = node("SoakAgain", conditioning=positive, nonce=0)
    prompt["sampler"] = _sampler(prompt, rng, frames, model=model, positive=["again", 0], negative=negative)
    prompt["latent"] = node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/soak")
    _finish(prompt, rng, model)
    return prompt


def _patched(prompt: dict, rng: Random) -> list:
    """LoRA and feature cache, or neither; the MODEL's link."""
    model = ["model", 0]
    if rng.random() < 0.3:
        prompt["lora"] = node("TemporalUNetLoraLoader", model=model, lora_name=LORA, strength_model=rng.choice([1.0, -0.5, 0.0]))
        model = ["lora", 0]
    if rng.random() < 0.3:
        prompt["cache"] = node(
            "TemporalUNetFeatureCache", model=model, threshold=rng.choice([0.0, 0.1, 0.9]), depth=rng.choice([1, 2]))
        model = ["cache", 0]
    return model


def _controlled(prompt: dict, rng: Random, frames: int) -> tuple[list, list]:
    """A ControlNet, its residuals, those of a file, or none; the links of positive and negative."""
    how = rng.choice(["none", "none", "net", "computed", "file" if frames in (1, FRAMES) else "net"])
    if how == "none":
        return ["clip", 0], ["clip", 1]
    source = {"control_net": ["net", 0], "image": ["path", 0]} if how == "net" else {"residuals": ["residuals", 0]}
    if how == "file":
        prompt["residuals"] = node("TemporalUNetLoadControlNetResiduals", residuals_name=RESIDUALS)
        prompt["clip"]["inputs"].update(width=64, video_frames=FRAMES)
    else:
        prompt["net"] = node("TemporalUNetControlNetLoader", control_net_name=NET)
        prompt["path"] = node("LoadImage", image="path.png")
    if how == "computed":
        prompt["residuals"] = computed_residuals()
    prompt["control"] = node(
        "TemporalUNetApplyControlNetResiduals", positive=["clip", 0], negative=["clip", 1], strength=rng.choice([1.0, 0.4]),
        start_percent=rng.choice([0.0, 0.2]), end_percent=rng.choice([1.0, 0.7]), frame_strengths=rng.choice(CURVES), **source)
    return ["control", 0], ["control", 1]


def _sampler(prompt: dict, rng: Random, frames: int, **links) -> dict:
    window = rng.choice([0, 0, 2, 3])
    options = {
        "window_frames": window, "window_overlap": min(1, max(0, window - 1)), "closed_loop": rng.random() < 0.3,
        "keep_colors": rng.random() < 0.7, "guidance_start": rng.choice([0.0, 0.2]), "guidance_end": rng.choice([1.0, 0.8]),
    }
    if rng.random() < 0.5:
        prompt["options"] = node("TemporalUNetVideoOptions", **options)
        options = {"options": ["options", 0]}
    if rng.random() < 0.2:
        prompt["levels"] = node("AlignYourStepsScheduler", model_type="SVD", steps=2, denoise=1.0)
        options["sigmas"] = ["levels", 0]
    return node(
        "TemporalUNetSVDSampler", **links, latent_image=["clip", 2], seed=rng.randint(0, 2**63), steps=rng.choice([1, 2, 3]),
        min_cfg=1.0, max_cfg=rng.choice([1.0, 2.5]), guidance=rng.choice(["linear", "triangle", "constant", "curve"]),
        sampler_name=rng.choice(SAMPLERS), scheduler=rng.choice(SCHEDULERS), denoise=rng.choice([1.0, 1.0, 0.6]),
        guidance_curve=rng.choice(CURVES), **options,
    )


def _finish(prompt: dict, rng: Random, model: list) -> None:
    """What becomes of the latent besides: frames, a continued video, a saved UNet, or nothing."""
    how = rng.choice(["nothing", "frames", "frames", "continued", "saved"])
    if how == "saved":
        form, kind = rng.choice(list(SAVED.values()))
        prompt["save"] = node("TemporalUNetSave", model=model, filename_prefix="written/soak", format=form, type=kind)
    if how in ("frames", "continued"):
        prompt["frames"] = node(
            "TemporalUNetDecodeVideo", samples=["sampler", 0], vae=["vae", 0], frames_per_chunk=rng.choice([2, 32]), overlap=1)
        prompt["preview"] = node("PreviewImage", images=["frames", 0])
    if how == "continued":
        prompt["next"] = node("TemporalUNetContinueVideo", video=["frames", 0], vae=["vae", 0], video_frames=2)
        inputs = {**prompt["sampler"]["inputs"], "positive": ["next", 0], "negative": ["next", 1], "latent_image": ["next", 2]}
        prompt["second"] = node("TemporalUNetSVDSampler", **inputs)
        prompt["continuation"] = node("TemporalUNetDecodeVideo", samples=["second", 0], vae=["vae", 0])
        prompt["joined"] = node(
            "TemporalUNetJoinVideo", video=["frames", 0], continuation=["continuation", 0], match_colors=rng.random() < 0.5)
        prompt["preview"]["inputs"]["images"] = ["joined", 0]


def image(rng: Random) -> dict:
    """An image by the host's sampler."""
    prompt = {
        "model": node("TemporalUNetLoader", unet_name=SD, weight_dtype=rng.choice(["default", "fp16", "fp8_e4m3fn"])),
        "text": node("SoakText", width=768, seed=rng.randint(0, 9)), "again": node("SoakAgain", conditioning=["text", 0], nonce=0),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=rng.choice([1, 2])),
        "vae": node("VAELoader", vae_name="untrained_vae.safetensors"),
    }
    model = ["model", 0]
    if rng.random() < 0.3:
        prompt["cache"] = node("TemporalUNetFeatureCache", model=model, threshold=0.3, depth=1)
        model = ["cache", 0]
    conds = {"positive": ["again", 0], "negative": ["text", 0]}
    if rng.random() < 0.5:
        prompt["photo"] = node("LoadImage", image="photo.png")
        prompt["net"] = node("TemporalUNetControlNetLoader", control_net_name=SD_NET)
        prompt["control"] = node(
            "TemporalUNetApplyControlNetResiduals", **conds, control_net=["net", 0], image=["photo", 0],
            strength=0.7, start_percent=0.0, end_percent=rng.choice([1.0, 0.5]), frame_strengths="0:1.0")
        conds = {"positive": ["control", 0], "negative": ["control", 1]}
    prompt["sampler"] = node(
        "KSampler", model=model, **conds, latent_image=["empty", 0], seed=rng.randint(0, 2**63), steps=rng.choice([1, 2]),
        cfg=rng.choice([1.0, 4.0]), sampler_name=rng.choice(SAMPLERS), scheduler=rng.choice(["normal", "karras"]), denoise=1.0)
    prompt["latent"] = node("SaveLatent", samples=["sampler", 0], filename_prefix="latents/soak")
    if rng.random() < 0.5:
        prompt["frames"] = node("TemporalUNetDecodeVideo", samples=["sampler", 0], vae=["vae", 0])
        prompt["preview"] = node("PreviewImage", images=["frames", 0])
    return prompt


def any_prompt(rng: Random) -> dict:
    return image(rng) if rng.random() < 0.2 else video(rng)


def with_inputs(prompt: dict, name: str, **inputs) -> dict:
    """A copy with other inputs of the node `name`."""
    prompt = copy.deepcopy(prompt)
    prompt[name]["inputs"].update(inputs)
    return prompt


def long_run(rng: Random) -> dict:
    """A prompt that nobody waits for, to be cancelled."""
    prompt = any_prompt(rng)
    prompt["sampler"]["inputs"].pop("sigmas", None)
    return with_inputs(prompt, "sampler", steps=10000)


def pooled(prompt: dict) -> dict:
    """A copy whose samplers call the network on two workers of Ray, or here where a feature cache keeps it."""
    prompt = copy.deepcopy(prompt)
    for name in {"sampler", "second"} & prompt.keys():
        inputs = prompt[name]["inputs"]
        prompt[f"pool of {name}"] = node(
            "TemporalUNetRayPool", model=inputs["model"], address="", workers=2, use_this_gpu="cache" in prompt)
        inputs["model"] = [f"pool of {name}", 0]
    return prompt
