"""Write the editor workflows in example_workflows/ and their images, from the API-mode workflows in example_workflows/api/.

    python dev.py make templates [-- NAME ...]

The real editor loads each API-mode workflow; `arrange.js` puts its nodes into columns by their titles
and adds a note that says which files go where; the editor then serializes the graph, and a screenshot is taken. The
model files that the workflows name need not exist: files without weights stand in for them, so that the editor finds every choice
in its lists and the nodes say what is in the real ones.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path

from support.diffusers_names import to_diffusers
from support.editor import RENDERERS, Editor, chromium
from support.families import FULL
from support.stand_ins import unet_shapes, write_hollow, write_video
from tools.miniature.lay_out import lay_out
from tools.server import Server
from unet import ControlNetConfig, SVDControlNet

WORKFLOWS = Path(__file__).resolve().parents[2] / "example_workflows"
RESULT = ("Result", 360, ["Decode", "Decode Video", "Create Video", "Save Video", "Save Image"])
SVD = [  # columns: title of the group, width of its nodes, their titles; "Files" is the note
    ("Picture and models", 330, ["Photo", "First frame", "Load UNet", "Load VAE", "Image encoder and VAE"]),
    ("Conditioning", 330, ["SVD Image to Video", "Files"]),
    ("Sampling", 320, ["SVD Temporal UNet Sampler"]),
    RESULT,
]
CONTROL_VIDEO = ("Control video", 280, ["Control video", "Its frames", "As many as the clip has", "Edges"])
SVD_MODELS = ("Picture and models", 330, ["Photo", "Load UNet", "Image encoder and VAE", "Load ControlNet"])
COLUMNS = {
    "miniature_image_to_video": SVD,
    "svd_checkpoint_image_to_video": SVD,
    "svd_controlnet": [
        SVD_MODELS,
        CONTROL_VIDEO,
        ("Conditioning", 330, ["Frames of the clip", "SVD Image to Video", "Apply ControlNet Residuals"]),
        ("Sampling", 320, ["SVD Temporal UNet Sampler", "Files"]),
        RESULT,
    ],
    "controlnet_residuals_to_file": [
        SVD_MODELS,
        CONTROL_VIDEO,
        ("Conditioning", 330, ["Frames of the clip", "SVD Image to Video"]),
        ("Residuals", 360, ["Compute ControlNet Residuals", "Save ControlNet Residuals", "Files"]),
    ],
    "controlnet_residuals_from_file": [
        SVD_MODELS,
        ("Conditioning", 330, ["SVD Image to Video", "Load ControlNet Residuals", "Apply ControlNet Residuals"]),
        ("Sampling", 320, ["SVD Temporal UNet Sampler", "Files"]),
        RESULT,
    ],
    "sd15_controlnet": [
        ("Models", 440, ["Load UNet", "Load CLIP", "Load VAE", "Load ControlNet"]),
        ("Prompt", 320, ["Prompt", "Negative prompt", "Empty latent"]),
        ("Control picture", 280, ["Photo", "Edges"]),
        ("Conditioning", 330, ["Apply ControlNet Residuals", "Files"]),
        ("Sampling", 300, ["KSampler"]),
        RESULT,
    ],
    "sdxl_text_to_image": [
        ("Models", 440, ["Load UNet", "Load CLIP L and G", "Load VAE", "Files"]),
        ("Prompt", 320, ["Prompt", "Negative prompt", "Empty latent"]),
        ("Sampling", 300, ["KSampler"]),
        RESULT,
    ],
}
HEIGHTS = {
    "LoadImage": 340, "LoadVideo": 340, "CLIPTextEncode": 150, "SaveImage": 320, "SaveVideo": 320, "MarkdownNote": 170,
    "TemporalUNetLoadControlNetResiduals": 90, "TemporalUNetSaveControlNetResiduals": 90,
}
FOLDERS = {  # input that names a model file -> its folder in models/
    "unet_name": "diffusion_models", "ckpt_name": "checkpoints", "vae_name": "vae", "clip_name": "text_encoders",
    "clip_name1": "text_encoders", "clip_name2": "text_encoders", "control_net_name": "controlnet",
}
WEB = "https://huggingface.co/"
URLS = {  # where the editor offers to fetch a file that is missing; as in the host's own templates, for SVD next to the one there
    "svd.safetensors": f"{WEB}stabilityai/stable-video-diffusion-img2vid/resolve/main/svd.safetensors",
    "sd_xl_base_1.0.safetensors": f"{WEB}stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "v1-5-pruned-emaonly.safetensors":
        f"{WEB}stable-diffusion-v1-5/stable-diffusion-v1-5/resolve/main/v1-5-pruned-emaonly.safetensors",
    "control_v11p_sd15_canny_fp16.safetensors":
        f"{WEB}comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/control_v11p_sd15_canny_fp16.safetensors",
    "svd_lineart.safetensors":
        f"{WEB}CiaraRowles/temporal-controlnet-lineart-svd-v1/resolve/main/controlnet/diffusion_pytorch_model.safetensors",
    "clip_g.safetensors": f"{WEB}Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/text_encoders/clip_g.safetensors",
    "sdxl_vae.safetensors": f"{WEB}stabilityai/sdxl-vae/resolve/main/sdxl_vae.safetensors",
    "clip_l.safetensors": f"{WEB}comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors",
    "vae-ft-mse-840000-ema-pruned.safetensors":
        f"{WEB}stabilityai/sd-vae-ft-mse-original/resolve/main/vae-ft-mse-840000-ema-pruned.safetensors",
}
INPUT_FILES = ("file", "residuals_name")  # inputs that name a file in input/ which the user brings
LINEART = "svd_lineart.safetensors is controlnet/diffusion_pytorch_model.safetensors of " \
    "CiaraRowles/temporal-controlnet-lineart-svd-v1 at Hugging Face, renamed; it was trained with svd.safetensors, on 14 frames " \
    "of 512 x 512."
ADVICE = {
    "miniature_image_to_video": "To see everything work without a download. The miniature of Stable Video Diffusion comes with the "
    "source of this pack: python dev.py serve starts ComfyUI with these files in place. It knows only its own small world. For "
    "real videos open svd_checkpoint_image_to_video.",
    "svd_checkpoint_image_to_video": "Your checkpoint has another name? Choose it in both loaders, *Load UNet* and *Image "
    "encoder and VAE*. For SVD-XT set video_frames to 25. If memory runs out, lower width and height.",
    "svd_controlnet": f"{LINEART} control.mp4 stands for a video of your own. The photo starts the clip, the video's edges lead it "
    "on: photo and first frame should show the same. With depth maps use temporal-controlnet-depth-svd-v1 and bypass Edges.",
    "controlnet_residuals_to_file": "Runs the ControlNet once, for controlnet_residuals_from_file. control.mp4 stands for a video "
    f"of your own. Move the file from output/residuals to input. {LINEART}",
    "controlnet_residuals_from_file": "The file is made by controlnet_residuals_to_file (Compute and Save ControlNet Residuals), "
    "with the same checkpoint, width, height and frames as here. Move it from output/residuals to input, press R, and choose it in "
    "Load ControlNet Residuals. The ControlNet itself is not needed any more: change seed, strength and steps at will.",
    "sd15_controlnet": "The photo's edges steer the picture. Other ControlNets for Stable Diffusion 1.5 want their own kind of "
    "control image: depth, pose, …",
    "sdxl_text_to_image": "Only the UNet is read out of the checkpoint.",
}


def lineart_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the public SVD ControlNets."""
    encoder = replace(FULL["svd"], out_channels=0, depth_out=())
    network = SVDControlNet(ControlNetConfig(encoder, 3, (16, 32, 96, 256)), device="meta")
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return {name if name.startswith("controlnet_") else to_diffusers(name): shape for name, shape in shapes.items()}


SHAPES = {  # file -> its tensors, where a node of ours shows what is in it
    "svd.safetensors": partial(unet_shapes, FULL["svd"]),
    "v1-5-pruned-emaonly.safetensors": partial(unet_shapes, FULL["sd1"]),
    "sd_xl_base_1.0.safetensors": partial(unet_shapes, FULL["sdxl"]),
    "svd_lineart.safetensors": lineart_shapes,
}
BARE = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.Graph.CanvasMenu": False}


def model_files(prompt: dict) -> list[str]:
    """The model files that a workflow names, relative to models/, each once."""
    files = []
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if name in FOLDERS:
                file = value if value.startswith("checkpoints/") else f"{FOLDERS[name]}/{value}"
                files += [file] if file not in files else []
    return files


def input_files(prompt: dict) -> list[str]:
    return [node["inputs"][name] for node in prompt.values() for name in INPUT_FILES if name in node["inputs"]]


def note(name: str, prompt: dict) -> str:
    """The workflow's files by folder, with addresses where they are known, and what else to know."""
    folders: dict[str, list[str]] = {}
    for file in [*(f"models/{file}" for file in model_files(prompt)), *(f"input/{file}" for file in input_files(prompt))]:
        folder, _, file_name = file.rpartition("/")
        folders.setdefault(folder, []).append(f"[{file_name}]({URLS[file_name]})" if file_name in URLS else file_name)
    lines = [f"- **{folder}**: {', '.join(names)}" for folder, names in folders.items()]
    return "\n".join([*lines, "", ADVICE[name]])


def write(path: Path, text: str) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def tidy(workflow: dict, name: str) -> dict:
    """Without what differs from run to run, and without a view: the editor then shows the whole graph."""
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"temporal-unet/{name}"))
    workflow["extra"].pop("ds", None)
    return workflow


def arrange(editor: Editor, name: str, prompt: dict) -> None:
    """Lay out the open graph, which may lack some of the workflow's nodes, and add its note."""
    script = (Path(__file__).parent / "arrange.js").read_text(encoding="utf-8")
    editor.page.evaluate(script, [COLUMNS[name], HEIGHTS, note(name, prompt), FOLDERS, URLS])


def make_workflow(editor: Editor, name: str, prompt: dict) -> None:
    editor.load_api(prompt, name)
    arrange(editor, name, prompt)
    write(WORKFLOWS / f"{name}.json", json.dumps(tidy(editor.workflow(), name), indent=2, ensure_ascii=False) + "\n")


def photograph(editor: Editor, name: str, path: Path) -> None:
    """An image of the whole graph, with nothing of the editor around it."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    editor.load_template(workflow, name)
    bounds = [group["bounding"] for group in workflow["groups"]]
    left, top = min(b[0] for b in bounds) - 20, min(b[1] for b in bounds) - 20
    right, bottom = max(b[0] + b[2] for b in bounds) + 20, max(b[1] + b[3] for b in bounds) + 20
    editor.page.set_viewport_size({"width": int(right - left), "height": int(bottom - top)})
    editor.page.evaluate(
        "([x, y]) => { app.canvas.resize(); app.canvas.ds.scale = 1; "
        "app.canvas.ds.offset = [x, y]; app.canvas.setDirty(true, true) }",
        [-left, -top],
    )
    editor.page.wait_for_timeout(1000)
    editor.page.screenshot(path=path, type="jpeg", quality=85)
    print(path)


def prepare_base(base: Path, host: Path, prompts: dict[str, dict]) -> None:
    """The photo, a control video made of it, the miniature, and files without weights in place of the other models."""
    lay_out(base / "models")
    for file in {file for prompt in prompts.values() for file in model_files(prompt)}:
        if not (base / "models" / file).exists():
            write_hollow(base / "models" / file, SHAPES.get(file.rpartition("/")[2], dict)())
    (base / "input").mkdir()
    for photo in (host / "input" / "example.png", base / "models" / "first_frame.png"):
        shutil.copy(photo, base / "input")
    for file in {file for prompt in prompts.values() for file in input_files(prompt)}:
        (base / "input" / file).touch()
        if file.endswith(".mp4"):
            write_video(base / "input" / "example.png", base / "input" / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ADVICE)} (default: all)")
    parser.add_argument("--renderer", choices=RENDERERS, default="nodes2", help="of the images (default: nodes2)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write only the images, there")
    args = parser.parse_args()
    if unknown := set(args.names) - set(ADVICE):
        parser.error(f"no such workflow: {', '.join(unknown)}; choose from {', '.join(ADVICE)}")
    host = Path(os.environ["TEMPORAL_UNET_HOST"])
    prompts = {name: json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8")) for name in args.names or ADVICE}

    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        prepare_base(Path(scratch), host, prompts)
        # As on a graphics card: in fp16.
        with Server(host, Path(sys.executable), Path(scratch), ["--fp16-unet"], cpu=True) as server:
            for name, prompt in prompts.items() if not args.pictures else ():
                # An editor for each: an image that one graph's node 1 shows would stay with the next graph's node 1.
                make_workflow(Editor(browser, server, "classic"), name, prompt)
            editor = Editor(browser, server, args.renderer, **BARE)
            editor.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
            editor.page.add_style_tag(content="button[aria-label='Show Menu'] { display: none }")
            for name in prompts:
                photograph(editor, name, (args.pictures or WORKFLOWS) / f"{name}.jpg")


if __name__ == "__main__":
    main()
