"""Write the editor workflows in example_workflows/ and their pictures, from the API-mode workflows in example_workflows/api/.

    python dev.py setup
    TEMPORAL_UNET_HOST=<ComfyUI's folder> <its Python> tests/browser/make_templates.py [NAME ...]

(`dev.py setup` prints both.) The real editor loads each API-mode workflow; `arrange.js` puts its nodes into columns by their titles
and adds a note that says which files go where; the editor then serialises the graph and is photographed. The model files that the
workflows name need not exist: empty ones stand in for them, so that the editor finds every choice in its lists.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # pytest.ini does this for the tests

from comfy_server import Server  # noqa: E402
from editor import RENDERERS, Editor, chromium  # noqa: E402

WORKFLOWS = ROOT / "example_workflows"
RESULT = ("Result", 360, ["Decode", "Create Video", "Save Video", "Save Image"])
SVD = [  # columns: title of the group, width of its nodes, their titles; "Files" is the note
    ("Picture and models", 330, ["Photo", "Load UNet", "Load VAE", "Image encoder and VAE"]),
    ("Conditioning", 330, ["SVD Image to Video", "Files"]),
    ("Sampling", 320, ["SVD Temporal UNet Sampler"]),
    RESULT,
]
COLUMNS = {
    "svd_image_to_video": SVD,
    "svd_checkpoint_image_to_video": SVD,
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
HEIGHTS = {"LoadImage": 340, "CLIPTextEncode": 150, "SaveImage": 320, "SaveVideo": 320, "MarkdownNote": 170}
FOLDERS = {  # input that names a model file -> its folder in models/
    "unet_name": "diffusion_models", "ckpt_name": "checkpoints", "vae_name": "vae", "clip_name": "text_encoders",
    "clip_name1": "text_encoders", "clip_name2": "text_encoders", "control_net_name": "controlnet",
}
ADVICE = {
    "svd_image_to_video": "The untrained files only show that everything works: they make noise. For a real video choose SVD's UNet and "
    "VAE, 1024 x 576 and 20 steps, or open svd_checkpoint_image_to_video.",
    "svd_checkpoint_image_to_video": "For SVD-XT choose its file in both loaders, and 25 frames. Short of memory: smaller width and "
    "height.",
    "sd15_controlnet": "The photo's edges steer the picture. Other ControlNets for Stable Diffusion 1.5 want their own kind of control "
    "image: depth, pose, …",
    "sdxl_text_to_image": "Only the UNet is read out of the checkpoint.",
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


def note(name: str, prompt: dict) -> str:
    folders: dict[str, list[str]] = {}
    for file in model_files(prompt):
        folder, _, file_name = file.rpartition("/")
        folders.setdefault(folder, []).append(file_name)
    lines = [f"- **models/{folder}**: {', '.join(names)}" for folder, names in folders.items()]
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


def make_workflow(editor: Editor, name: str, prompt: dict) -> None:
    editor.load_api(prompt, name)
    arrange = (Path(__file__).parent / "arrange.js").read_text(encoding="utf-8")
    editor.page.evaluate(arrange, [COLUMNS[name], HEIGHTS, note(name, prompt)])
    write(WORKFLOWS / f"{name}.json", json.dumps(tidy(editor.workflow(), name), indent=2, ensure_ascii=False) + "\n")


def photograph(editor: Editor, name: str, path: Path) -> None:
    """A picture of the whole graph, with nothing of the editor around it."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    editor.load_template(workflow, name)
    bounds = [group["bounding"] for group in workflow["groups"]]
    left, top = min(b[0] for b in bounds) - 20, min(b[1] for b in bounds) - 20
    right, bottom = max(b[0] + b[2] for b in bounds) + 20, max(b[1] + b[3] for b in bounds) + 20
    editor.page.set_viewport_size({"width": int(right - left), "height": int(bottom - top)})
    editor.page.evaluate(
        "([x, y]) => { app.canvas.resize(); app.canvas.ds.scale = 1; app.canvas.ds.offset = [x, y]; app.canvas.setDirty(true, true) }",
        [-left, -top],
    )
    editor.page.wait_for_timeout(1000)
    editor.page.screenshot(path=path, type="jpeg", quality=85)
    print(path)


def prepare_base(base: Path, host: Path, prompts: dict[str, dict]) -> None:
    """The photo, and empty files in place of the models."""
    for file in {file for prompt in prompts.values() for file in model_files(prompt)}:
        (base / "models" / file).parent.mkdir(parents=True, exist_ok=True)
        (base / "models" / file).touch()
    (base / "input").mkdir()
    shutil.copy(host / "input" / "example.png", base / "input")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ADVICE)} (default: all)")
    parser.add_argument("--renderer", choices=RENDERERS, default="nodes2", help="of the pictures (default: nodes2)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write only the pictures, there")
    args = parser.parse_args()
    if unknown := set(args.names) - set(ADVICE):
        parser.error(f"no such workflow: {', '.join(unknown)}; choose from {', '.join(ADVICE)}")
    host = Path(os.environ["TEMPORAL_UNET_HOST"])
    prompts = {name: json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8")) for name in args.names or ADVICE}

    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        prepare_base(Path(scratch), host, prompts)
        with Server(host, Path(sys.executable), Path(scratch), cpu=True) as server:
            for name, prompt in prompts.items() if not args.pictures else ():
                # An editor for each: a picture that one graph's node 1 shows would stay with the next graph's node 1.
                make_workflow(Editor(browser, server, "classic"), name, prompt)
            editor = Editor(browser, server, args.renderer, **BARE)
            editor.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
            editor.page.add_style_tag(content="button[aria-label='Show Menu'] { display: none }")
            for name in prompts:
                photograph(editor, name, (args.pictures or WORKFLOWS) / f"{name}.jpg")


if __name__ == "__main__":
    main()
