"""Write the editor workflows in example_workflows/ from the API-mode workflows in example_workflows/api/.

    python dev.py make templates [-- NAME ...]
    python dev.py make templates -- --pictures DIR    # screenshots of them, to look at

The real editor loads each API-mode workflow; `arrange.js` puts its nodes into columns by their titles
and adds a note that says which files go where; the editor then serializes the graph. The
model files that the workflows name need not exist: files without weights stand in for them, so that the editor finds every choice
in its lists and the nodes say what is in the real ones. The images of the cards are made by `cards.py`.
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

from support.editor import RENDERERS, Editor, chromium
from support.stand_ins import write_hollow, write_hollow_gguf
from tools.assets.templates import COLUMNS, FOLDERS, HEIGHTS, NOTES, ROOM, SHAPES, URLS, file_list, model_files
from tools.server import Server

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "example_workflows"
EXAMPLES = ROOT / "web" / "examples"
RESIDUALS = "residuals_name"  # input that names a file in input/ which another template writes
BARE = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False, "Comfy.Graph.CanvasMenu": False}


def english(key: str, files: str) -> str:
    """The English text of a note."""
    texts = json.loads((ROOT / "locales" / "en" / "main.json").read_text(encoding="utf-8"))["temporalUnet"]["notes"]
    return texts[key].replace("{files}", files)


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
    files = file_list(prompt)
    note = {"text": english(NOTES[name], files), "property": {"key": NOTES[name], "files": files}}
    examples = [path.name for path in EXAMPLES.iterdir()]
    editor.page.evaluate(script, [COLUMNS[name], HEIGHTS, ROOM, note, FOLDERS, URLS, examples])


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
    """The photo, the example files, and files without weights in place of the models."""
    for file in {file for prompt in prompts.values() for file in model_files(prompt)}:
        write = write_hollow_gguf if file.endswith(".gguf") else write_hollow
        write(base / "models" / file, SHAPES.get(file.rpartition("/")[2], dict)())
    (base / "input").mkdir()
    for photo in (host / "input" / "example.png", *EXAMPLES.iterdir()):
        shutil.copy(photo, base / "input")
    for node in (node for prompt in prompts.values() for node in prompt.values()):
        if RESIDUALS in node["inputs"]:
            (base / "input" / node["inputs"][RESIDUALS]).touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {'; '.join(COLUMNS)} (default: all)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write no workflow: screenshots of them, there")
    parser.add_argument("--renderer", choices=RENDERERS, default="nodes2", help="of the screenshots (default: nodes2)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(COLUMNS):
        parser.error(f"no such workflow: {'; '.join(unknown)}. Choose from: {'; '.join(COLUMNS)}")
    host = Path(os.environ["TEMPORAL_UNET_HOST"])
    prompts = {name: json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8")) for name in args.names or COLUMNS}

    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        prepare_base(Path(scratch), host, prompts)
        # As on a graphics card: in fp16.
        with Server(host, Path(sys.executable), Path(scratch), ["--fp16-unet"], cpu=True) as server:
            if args.pictures:
                args.pictures.mkdir(parents=True, exist_ok=True)
                editor = Editor(browser, server, args.renderer, **BARE)
                editor.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
                editor.page.evaluate("() => document.head.append(Object.assign(document.createElement('style'), "
                                     "{textContent: `button[aria-label='Show Menu'] { display: none }`}))")
                for name in prompts:
                    photograph(editor, name, args.pictures / f"{name}.jpg")
                return
            for name, prompt in prompts.items():
                # An editor for each: an image that one graph's node 1 shows would stay with the next graph's node 1.
                editor = Editor(browser, server, "classic")
                make_workflow(editor, name, prompt)
                editor.page.close()


if __name__ == "__main__":
    main()
