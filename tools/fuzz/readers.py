"""Every way in which the pack reads a file under ComfyUI: as a MODEL, a checkpoint, a ControlNet, a LoRA, residuals; and a curve.

What cannot be used is refused by the errors that nodes end with: `UNetFileError`, or a ValueError that begins with the node's name
or the input's. Every other error is a fault.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

RIGHT, REFUSED = "read", "refused"
MOST_CHARACTERS = 1100  # of a message: an error of a file has 1,000 at most, the node's name stands before it
OPTIONS: dict = {}  # of loading: the dtype that the host chooses


class Readers:
    """`read(kind, path)` reads an input in all ways there are for its kind, and says in a word what came of it."""

    def __init__(self, pack: Callable):
        """`pack` imports a module of the pack by its dotted name in it, as the host has loaded it."""
        self.unet, self.curve = pack("unet"), pack("nodes.bridge.inputs.curve")
        self.info, self.describe = pack("nodes.bridge.info.file_info"), pack("nodes.bridge.info.describe")
        self.loader, self.parts = pack("nodes.bridge.model.unet_loader"), pack("nodes.bridge.model.checkpoint_parts")
        self.loras, self.patches = pack("unet.weights.lora_file"), pack("nodes.bridge.model.lora_patches")
        self.clip = self.info.Clip(64, 64, 2, 0)
        self.model = None  # that LoRAs are put on

    def read(self, kind: str, path: Path) -> str:
        """RIGHT where one of the ways gave something, else REFUSED; raises what is no error of ours."""
        ways = [self._curve] if kind == "curve" else [self._model, self._checkpoint, self._controlnet, self._lora, self._residuals]
        return RIGHT if any([self._accepted(way, path) for way in ways]) else REFUSED  # a list: each of them reads it

    def _accepted(self, way: Callable, path: Path) -> bool:
        try:
            with torch.inference_mode():
                way(path)
        except ValueError as error:
            text = str(error)
            if not isinstance(error, self.unet.UNetFileError) and not text.startswith(("Load Checkpoint", "input: found ")):
                raise
            if len(text) > MOST_CHARACTERS or not text.isprintable():
                raise AssertionError(f"a message of {len(text)} characters: {text[:200]!r}") from None
            return False
        return True

    def _model(self, path: Path) -> None:
        checkpoint = self.unet.open_checkpoint(path)
        model = self.loader.load_checkpoint(checkpoint, OPTIONS)
        self.describe.describe(checkpoint, model)

    def _checkpoint(self, path: Path) -> None:
        self.info.checkpoint_file_info(str(path), OPTIONS, self.clip)
        self.parts.load_parts(self.unet.open_checkpoint(path))

    def _controlnet(self, path: Path) -> None:
        """The host's own loader, which a file without one of our networks goes to, is not tried."""
        self.info.controlnet_file_info(str(path))
        network = self.unet.find_controlnet(path)
        if network is not None:
            self.info.OPENERS[network](path).state_dict(torch.float32)

    def _lora(self, path: Path) -> None:
        self.patches.with_lora(self.model, self.loras.open_lora(path), 1.0)

    def _residuals(self, path: Path) -> None:
        self.unet.read_residuals(path)

    def _curve(self, path: Path) -> None:
        """Texts come as JSON, in which halves of characters may stand."""
        points = self.curve.parse_curve(path.read_bytes().decode("utf-8", "surrogateescape"), "input")
        values = self.curve.evaluate_curve(points, 25)
        assert len(values) == 25 and abs(values).max() <= self.curve.LARGEST
