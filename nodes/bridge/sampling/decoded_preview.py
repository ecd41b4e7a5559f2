"""The preview of the sampler once its clip is decoded: the frames as they are."""

import logging
from collections import deque
from importlib import import_module

import comfy.model_management as management
import torch
from comfy_execution.graph_utils import is_link

from .preview import FPS, USUAL_FPS, sender
from .preview_sheet import DecodedFrames, draw

SAMPLER = "TemporalUNetSVDSampler"
PASSES_ON = ("LATENT", "*")  # types of outputs by which a clip comes from the sampler to Decode Video


def show_decoded(pixels: torch.Tensor, latent: dict, takes: int, take: int) -> None:
    """Sends the frames, pixels [frames, h, w, 3] in 0..1, as a sheet of the sampler that `latent` comes from, if it is ours.

    It holds `takes` takes; the frames are those of `take`, counted from 1, or for 0 of all, which are shown side by side. To be
    called by the node that has decoded them from its input `samples`. No error of the preview ends the run.
    """
    try:
        send = sender(latent.get(FPS, USUAL_FPS), find_sampler)
        if send is not None:
            about = {} if takes == 1 else {"takes": takes, "take": take} if take else {"takes": takes}
            send({"decoded": True, **about, **draw(pixels.movedim(-1, 1), DecodedFrames(), 1 if take else takes)})
    except management.InterruptProcessingException:
        raise
    except Exception:  # noqa: BLE001 - any error, as said above
        logging.warning("Temporal UNet: the preview of the decoded frames failed; the run goes on without it.", exc_info=True)


def find_sampler(prompt, node_id: str) -> str | None:
    """The id of the nearest sampler of ours that the input `samples` of this node comes from, in the host's DynamicPrompt.

    It may lie in a subgraph, and its result may be from an earlier run.
    """
    kinds = import_module("nodes").NODE_CLASS_MAPPINGS  # the host's module; a plain import would have tools read ours
    waiting, seen = deque([prompt.get_node(node_id)["inputs"]["samples"]]), set()
    while waiting:
        source, slot = waiting.popleft()
        node = prompt.get_node(source)
        if node["class_type"] == SAMPLER:
            return source
        if source in seen or kinds[node["class_type"]].RETURN_TYPES[slot] not in PASSES_ON:
            continue
        seen.add(source)
        waiting.extend(value for value in node["inputs"].values() if is_link(value) and prompt.has_node(value[0]))
    return None
