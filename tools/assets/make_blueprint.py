"""Write the subgraph blueprint of the pack, subgraphs/Image to Video (SVD).json, from example_workflows/api/.

    python dev.py make blueprint

The real editor loads the API-mode workflow, makes one subgraph of it, publishes that as a
user does, and the file that it wrote is taken.
"""
from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import uuid
from pathlib import Path

from support.editor import Editor, chromium
from tools.assets.make_templates import WORKFLOWS, arrange, prepare_base, write
from tools.server import Server

ROOT = Path(__file__).resolve().parents[2]
NAME = "Image to Video (SVD)"
EXAMPLE = "1 Image to Video"
OUTSIDE = ("LoadImage", "SaveVideo")  # what the user brings
PATH = ROOT / "subgraphs" / f"{NAME}.json"
CATEGORY = "Video generation and editing/Image to video"  # where the host files its own of the kind
DESCRIPTION = "Makes a short video of a photo with Stable Video Diffusion: svd.safetensors (14 frames) or svd_xt.safetensors " \
    "(25 frames) from models/checkpoints. Connect Load Image before it and Save Video after it."
ALIASES = [
    "image to video", "img2vid", "i2v", "svd", "stable video diffusion", "animate", "animate photo", "photo to video",
    "load checkpoint",
]
INPUTS = [  # name outside, type of the node inside, its input; the same where they can be, because the host's errors name the inner
    ("image", "TemporalUNetSVDConditioning", "init_image"),
    ("ckpt_name", "TemporalUNetCheckpointLoader", "ckpt_name"),
    ("width", "TemporalUNetSVDConditioning", "width"),
    ("height", "TemporalUNetSVDConditioning", "height"),
    ("video_frames", "TemporalUNetSVDConditioning", "video_frames"),
    ("motion_bucket_id", "TemporalUNetSVDConditioning", "motion_bucket_id"),
    ("fps", "TemporalUNetSVDConditioning", "fps"),
    ("seed", "TemporalUNetSVDSampler", "seed"),
]
OUTPUTS = [("frames", "TemporalUNetDecodeVideo"), ("video", "CreateVideo")]  # name outside, type of the node inside
CONVERT = """async ([name, inputs, outputs, description, aliases]) => {
    const all = new Set([...app.graph._nodes, ...app.graph._groups])
    const {subgraph, node} = app.graph.convertToSubgraph(all)
    await new Promise((done) => setTimeout(done, 1000)) // the editor then adds inputs of its own choice
    for (const input of [...subgraph.inputs]) subgraph.removeInput(input)
    for (const [outside, type, inside] of inputs) {
        const target = subgraph.nodes.find((node) => node.type === type)
        const slot = target.inputs.find((input) => input.name === inside)
        const input = subgraph.addInput(outside, String(slot.type))
        if (!input.connect(slot, target)) throw new Error(`${outside} cannot be connected to ${type}.${inside}`)
    }
    for (const output of [...subgraph.outputs]) subgraph.removeOutput(output)
    for (const [outside, type] of outputs) {
        const source = subgraph.nodes.find((node) => node.type === type)
        subgraph.addOutput(outside, String(source.outputs[0].type)).connect(source.outputs[0], source)
    }
    subgraph.inputNode.arrange()
    subgraph.outputNode.arrange()
    subgraph.name = node.title = name
    subgraph.extra.BlueprintDescription = description
    subgraph.extra.BlueprintSearchAliases = aliases
    node.pos = [0, 0]
    node.setSize([400, node.computeSize()[1]])
    app.canvas.selectItems([node])
    await app.extensionManager.command.execute('Comfy.PublishSubgraph', {metadata: {name}})
}"""


def tidy(text: str) -> str:
    """Without what differs from run to run; with the host's words for what it is."""
    numbers: dict[str, str] = {}
    for found in re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text):
        numbers.setdefault(found, str(uuid.uuid5(uuid.NAMESPACE_URL, f"temporal-unet/{NAME}/{len(numbers)}")))
    for found, stable in numbers.items():
        text = text.replace(found, stable)
    blueprint = json.loads(text)
    blueprint["definitions"]["subgraphs"][0] |= {"category": CATEGORY, "description": DESCRIPTION}
    return json.dumps(blueprint, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    host = Path(os.environ["TEMPORAL_UNET_HOST"])
    prompt = json.loads((WORKFLOWS / "api" / f"{EXAMPLE}.json").read_text(encoding="utf-8"))
    inside = {node_id: node for node_id, node in prompt.items() if node["class_type"] not in OUTSIDE}
    for node in inside.values():
        kept = {name: value for name, value in node["inputs"].items() if not isinstance(value, list) or value[0] in inside}
        node["inputs"] = kept
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        base = Path(scratch)
        prepare_base(base, host, {EXAMPLE: prompt})
        with Server(host, Path(sys.executable), base, cpu=True) as server:
            editor = Editor(browser, server, "classic")
            editor.load_api(inside, NAME)
            arrange(editor, EXAMPLE, prompt)
            editor.page.evaluate(CONVERT, [NAME, INPUTS, OUTPUTS, DESCRIPTION, ALIASES])
            [made] = base.glob("user/*/subgraphs/*.json")
            PATH.parent.mkdir(exist_ok=True)
            write(PATH, tidy(made.read_text(encoding="utf-8")))
    print(PATH)


if __name__ == "__main__":
    main()
