"""What the templates in example_workflows/ look like in the editor: columns, notes, and the files that they name."""
from __future__ import annotations

from support.families import FULL, in_diffusers_layout
from support.stand_ins import lineart_shapes, unet_shapes

NOTE = "Note"  # title of the note in each template
PHOTO = ("Photo and model", 320, ["Photo", "First frame", "Load Checkpoint"])
CLIP = ("Clip", 330, ["SVD Image to Video", "Video Options", "Times as many frames", NOTE])
SAMPLING = ("Sampling", 320, ["SVD Temporal UNet Sampler", "Frames per second"])
FRAMES = ("Frames", 300, ["Load Frame Interpolation Model", "Decode Video", "Frames in between", "Create Video"])
VIDEO = ("Video", 360, ["Save Video"])
PARTS = ("Photo and models", 320, ["Photo", "Load UNet", "Load VAE", "Load CLIP Vision"])
STRAIGHT = [PHOTO, CLIP, SAMPLING, FRAMES, VIDEO]  # columns: title of the group, width of its nodes, their titles
CONTROL = ("Control video", 320, ["Control video", "Load ControlNet", NOTE])
EDGES = ("Edges", 300, ["Its frames", "Edges", "SVD Image to Video"])
LED = ("Control", 330, ["Apply ControlNet Residuals", "Load ControlNet Residuals"])
TEXT = ("Prompt", 320, ["Prompt", "Negative prompt", "Empty latent"])
IMAGE = ("Image", 360, ["Decode", "Save Image"])

COLUMNS = {
    "1 Image to Video": STRAIGHT,
    "1b Image to Video, from diffusers": [PARTS, *STRAIGHT[1:]],
    "1c Image to Video, GGUF": [PARTS, *STRAIGHT[1:]],
    "2 Smooth, with frame interpolation": STRAIGHT,
    "3 Endless loop": STRAIGHT,
    "4 Long video": STRAIGHT,
    "5 Video led by a control video": [PHOTO, CONTROL, EDGES, LED, SAMPLING, FRAMES, VIDEO],
    "6 Try it without a download": STRAIGHT,
    "7 Image led by edges (SD 1.5, ControlNet)": [
        ("Photo and models", 320, ["Photo", "Load Checkpoint", "Load ControlNet"]), ("Edges", 300, ["Edges", NOTE]), TEXT, LED,
        ("Sampling", 300, ["KSampler"]), IMAGE,
    ],
    "8 Image from text (SDXL)": [("Model", 320, ["Load Checkpoint", NOTE]), TEXT, ("Sampling", 300, ["KSampler"]), IMAGE],
    "9a ControlNet residuals to a file": [
        PHOTO, CONTROL, EDGES, ("Residuals", 360, ["Compute ControlNet Residuals", "Save ControlNet Residuals"]),
    ],
    "9b Video from ControlNet residuals in a file": [
        PHOTO, ("Clip", 330, ["Load ControlNet Residuals", "SVD Image to Video", NOTE]),
        ("Control", 330, ["Apply ControlNet Residuals"]), SAMPLING, FRAMES, VIDEO,
    ],
}
NOTES = dict(zip(COLUMNS, (  # key of each template's note among the texts `notes` in locales/*/main.json
    "imageToVideo", "diffusers", "gguf", "smooth", "loop", "long", "led", "miniature", "edges", "text", "toFile", "fromFile",
), strict=True))
HEIGHTS = {  # least, of nodes that show an image or a text
    "LoadImage": 340, "LoadVideo": 340, "CLIPTextEncode": 150, "SaveImage": 360, "SaveVideo": 360, "MarkdownNote": 210,
    "TemporalUNetLoadControlNetResiduals": 90, "TemporalUNetSaveControlNetResiduals": 90,
}
ROOM = {  # for what panels say of a file, and for the preview of a square clip
    "TemporalUNetCheckpointLoader": 385, "TemporalUNetLoader": 385, "TemporalUNetControlNetLoader": 270,
    "TemporalUNetSVDSampler": 660,
}
FOLDERS = {  # input that names a model file -> its folder in models/
    "ckpt_name": "checkpoints", "control_net_name": "controlnet", "model_name": "frame_interpolation",
    "unet_name": "diffusion_models", "vae_name": "vae", "clip_name": "clip_vision",
}
WEB = "https://huggingface.co/"
DIFFUSERS = f"{WEB}stabilityai/stable-video-diffusion-img2vid-xt/resolve/main"
URLS = {  # from where the editor offers to download a file that is missing; as in the host's own templates, for SVD next to theirs
    "svd.safetensors": f"{WEB}stabilityai/stable-video-diffusion-img2vid/resolve/main/svd.safetensors",
    "svd_xt_unet_fp16.safetensors": f"{DIFFUSERS}/unet/diffusion_pytorch_model.fp16.safetensors",
    "svd_image_encoder_fp16.safetensors": f"{DIFFUSERS}/image_encoder/model.fp16.safetensors",
    "vae-ft-mse-840000-ema-pruned.safetensors":
        f"{WEB}stabilityai/sd-vae-ft-mse-original/resolve/main/vae-ft-mse-840000-ema-pruned.safetensors",
    "svd_lineart.safetensors":
        f"{WEB}CiaraRowles/temporal-controlnet-lineart-svd-v1/resolve/main/controlnet/diffusion_pytorch_model.safetensors",
    "film_net_fp16.safetensors":
        f"{WEB}Comfy-Org/frame_interpolation/resolve/main/frame_interpolation/film_net_fp16.safetensors",
    "v1-5-pruned-emaonly.safetensors":
        f"{WEB}stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.safetensors",
    "control_v11p_sd15_canny_fp16.safetensors":
        f"{WEB}comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/control_v11p_sd15_canny_fp16.safetensors",
    "sd_xl_base_1.0.safetensors": f"{WEB}stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
}
VAE = "first_stage_model.decoder.conv_in.weight"
SHAPES = {  # file -> its tensors, where a node of ours shows what is in it; of the parts next to the UNet one for each
    "svd.safetensors": lambda: _checkpoint("svd", VAE, "conditioner.embedders.0.open_clip.model.visual.proj"),
    "svd_xt_unet_fp16.safetensors": lambda: in_diffusers_layout(FULL["svd"], unet_shapes(FULL["svd"], "")),
    "svd_xt_Q8_0.gguf": lambda: unet_shapes(FULL["svd"], ""),  # which users make themselves
    "v1-5-pruned-emaonly.safetensors":
        lambda: _checkpoint("sd1", VAE, "cond_stage_model.transformer.text_model.final_layer_norm.weight"),
    "sd_xl_base_1.0.safetensors":
        lambda: _checkpoint("sdxl", VAE, "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight"),
    "svd_lineart.safetensors": lineart_shapes,
}


def _checkpoint(family: str, *others: str) -> dict[str, tuple[int, ...]]:
    return unet_shapes(FULL[family]) | {name: (1,) for name in others}


def model_files(prompt: dict) -> list[str]:
    """The model files that a workflow names and the pack does not bring, relative to models/, each once."""
    named = [(name, value) for node in prompt.values() for name, value in node["inputs"].items() if name in FOLDERS]
    return list(dict.fromkeys(f"{FOLDERS[name]}/{value}" for name, value in named if value in URLS or value in SHAPES))


def file_list(prompt: dict) -> str:
    """Those of them to download, in Markdown: by folder, each with its address."""
    files = [file.rsplit("/", 1) for file in model_files(prompt)]
    return "\n".join(f"- **models/{folder}**: [{file}]({URLS[file]})" for folder, file in files if file in URLS)
