"""Write the image of each node for the README and its help page: web/docs/<NodeId>/node.webp.

    python dev.py make node-pictures [-- NODE_ID ...]

The real editor shows each node by itself, advanced inputs too, with files of the real layout to
choose from.
"""
from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from support.editor import RENDERERS, Editor, chromium
from support.stand_ins import write_hollow
from tools.assets.make_templates import BARE, WORKFLOWS, prepare_base
from tools.server import Server

FILES_OF = (  # workflows that name one file for every loader
    "9a ControlNet residuals to a file", "9b Video from ControlNet residuals in a file",
)
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web" / "docs"
MARGIN = 12  # pixels around a node
WAIT = 2000  # milliseconds for fonts, and for what a node asks of the server
SHOW = """([type, width, id]) => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    node.id = id // a new one: the editor keeps what it showed of an id
    node.showAdvanced = node.widgets?.some((widget) => widget.options?.advanced)
    app.graph.add(node)
    node.pos = [100, 100]
    node.setSize([width, node.computeSize()[1]])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [200, 40]
    app.canvas.setDirty(true, true)
}"""


def photograph(editor: Editor, node_id: str, path: Path, number: int, width: int = 360) -> None:
    editor.page.evaluate(SHOW, [node_id, width, number])
    editor.page.wait_for_timeout(WAIT)
    [(left, top, right, bottom)] = editor.node_boxes().values()
    clip = {"x": left - MARGIN, "y": top - MARGIN, "width": right - left + 2 * MARGIN, "height": bottom - top + 2 * MARGIN}
    picture = Image.open(io.BytesIO(editor.page.screenshot(clip=clip)))
    picture.convert("RGB").save(path, quality=85, method=6)
    print(f"{path.relative_to(ROOT)}: {picture.width}x{picture.height}, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = sorted(folder.name for folder in DOCS.iterdir() if folder.is_dir())
    parser.add_argument("nodes", nargs="*", metavar="NODE_ID", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--renderer", choices=RENDERERS, default="nodes2")
    args = parser.parse_args()
    if unknown := set(args.nodes) - set(known):
        parser.error(f"no help page for {', '.join(unknown)}")
    host = Path(os.environ["TEMPORAL_UNET_HOST"])
    prompts = {name: json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8")) for name in FILES_OF}
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        base = Path(scratch)
        prepare_base(base, host, prompts)
        write_hollow(base / "models" / "loras" / "svd_camera_lora.safetensors", {})
        with Server(host, Path(sys.executable), base, ["--fp16-unet"], cpu=True) as server:  # as on a graphics card
            editor = Editor(browser, server, args.renderer, height=1400, **BARE)
            editor.page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
            for number, node_id in enumerate(args.nodes or known, start=1):
                photograph(editor, node_id, DOCS / node_id / "node.webp", number)


if __name__ == "__main__":
    main()
