"""What do fewer and cheaper steps cost in likeness? The same videos of the miniature by several schedules and caches.

    python dev.py bench steps [-- --worlds 3 --only ays --json FILE]

`cost` is the share of the FLOPs of 20 steps of the real SVD at 14 x 72x128 that the same calls would take, counted on the meta
device: the miniature's outer blocks weigh more, so its time says nothing of a cache. Likeness is PSNR over frames 1 to 7: to the
videos of 20 and of 60 steps (euler, karras, no cache), and to the true continuation; `center` is how far the sprite is from where
it truly is, in pixels.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.full_svd import SVD
from support.host_in_process import boot, node
from tools.bench.quality import MAX_CFG, MIN_CFG, Studio, held_out, score
from tools.miniature import world
from unet import Hooks, UNetModel

FULL_STEPS = 20  # what `cost` 1 is


@dataclass(frozen=True)
class Row:
    """One way to make the videos."""

    steps: int
    scheduler: str = "karras"
    cache: str | None = None  # id of the node on the model
    settings: tuple = ()  # of that node
    sampler: str = "euler"

    @property
    def name(self) -> str:
        cached = "" if self.cache is None else f", {self.cache.removeprefix('TemporalUNet')} {' '.join(map(str, self.settings))}"
        return f"{self.sampler} {self.scheduler} {self.steps}{cached}"

    @property
    def depth(self) -> int:
        """Outer blocks that steps of our cache compute."""
        return self.settings[1] if self.cache == OURS else 0

    def on(self, model):
        return model if self.cache is None else node(self.cache).execute(model, *self.settings, *MORE[self.cache]).result[0]


OURS, EASY, AYS = "TemporalUNetFeatureCache", "EasyCache", "align_your_steps"
MORE = {OURS: (0.0, 1.0), EASY: (0.0, 0.95, False)}  # start and end, as shares of the sampling
KARRAS_20, KARRAS_60 = Row(FULL_STEPS), Row(60)
ROWS = (
    *(Row(steps) for steps in (14, 10, 7)),
    *(Row(steps, AYS) for steps in (20, 14, 10, 8, 7)),
    Row(10, AYS, sampler="dpmpp_2m"),
    *(Row(20, cache=OURS, settings=(threshold, depth)) for depth, thresholds in (
        (1, (0.1, 0.2)), (2, (0.1, 0.2, 0.3, 0.4)), (3, (0.3, 0.4))) for threshold in thresholds),
    *(Row(steps, AYS, OURS, (threshold, depth)) for steps, threshold, depth in (
        (14, 0.2, 2), (14, 0.3, 2), (10, 0.1, 2), (10, 0.2, 2), (10, 0.3, 2), (10, 0.4, 2), (10, 0.3, 3))),
    *(Row(20, cache=EASY, settings=(threshold,)) for threshold in (0.1, 0.2, 0.3, 0.4)),
    *(Row(10, AYS, EASY, (threshold,)) for threshold in (0.2, 0.3)),
)


class _InnerLeftOut(Hooks):
    """Counts one call with the inner blocks, which says their result's shape, and one without."""

    def __init__(self, outer):
        self.outer, self.shape = outer, None

    def inner(self, h, compute):
        if self.shape is None:
            out = compute(h)
            self.shape = out.shape
            return out
        return h.new_empty(self.shape)


@functools.cache
def share_of_a_call(depth: int, frames: int = 14, height: int = 72, width: int = 128) -> float:
    """FLOPs of a call of the real SVD that computes `depth` blocks at each end, as a share of those of a whole call."""
    with torch.device("meta"):
        net = UNetModel(SVD, dtype=torch.float16)
        call = {
            "x": torch.empty(frames, 8, height, width, dtype=torch.float16), "timesteps": torch.empty(frames),
            "context": torch.empty(frames, 1, 1024, dtype=torch.float16), "y": torch.empty(frames, 768, dtype=torch.float16),
        }
    hooks, counted = _InnerLeftOut(depth), []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(**call, hooks=hooks)
        counted.append(counter.get_total_flops())
    return counted[1] / counted[0]


class Counted:
    """Rows (frames of a branch) that went through a network's first layer, and through its middle block."""

    def __init__(self, network):
        self.outer = self.inner = 0
        network.input_blocks[0][0].register_forward_pre_hook(lambda layer, args: self._add("outer", args))
        network.middle_block[0].register_forward_pre_hook(lambda layer, args: self._add("inner", args))

    def _add(self, which, args):
        setattr(self, which, getattr(self, which) + args[0].shape[0])

    def of(self, make: Callable[[], list]) -> tuple[list, int, int]:
        """(what `make` makes, rows through the first layer, rows through the middle)."""
        self.outer = self.inner = 0
        return make(), self.outer, self.inner


def likeness(videos: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Mean PSNR in dB over the videos' frames 1 to the last; 99 where all are equal."""
    errors = [np.square(np.clip(a[1:], 0, 1) - np.clip(b[1:], 0, 1)).mean() for a, b in zip(videos, others, strict=True)]
    return float(np.mean([99.0 if error == 0 else min(99.0, -10 * np.log10(error)) for error in errors]))


def measure(studio: Studio, worlds: int, rows: tuple[Row, ...]) -> list[dict]:
    """One line of the table for each row, with the two references before them."""
    counted, clips = Counted(studio.model.model.diffusion_model), [world.render(of) for of in held_out(worlds)]

    def videos(row):
        model = row.on(studio.model)
        return counted.of(lambda: [make(studio, of, seed, row, model) for seed, of in enumerate(held_out(worlds))])

    references = {row: videos(row) for row in (KARRAS_20, KARRAS_60)}
    whole, lines = references[KARRAS_20][1], []
    for row in (*references, *rows):
        made, outer, inner = references.get(row) or videos(row)
        scores = [score(video, clip) for video, clip in zip(made, clips, strict=True)]
        cost = (inner + (outer - inner) * (share_of_a_call(row.depth) if row.depth else 1)) / whole
        lines.append({
            "name": row.name, "cost": round(cost, 3), "full": round(inner / whole * FULL_STEPS, 1),
            "to_20": round(likeness(made, references[KARRAS_20][0]), 1),
            "to_60": round(likeness(made, references[KARRAS_60][0]), 1),
            "truth": round(float(np.mean([each.psnr[1:].mean() for each in scores])), 2),
            "center": round(float(np.mean([each.centre[1:].mean() for each in scores])), 2),
        })
        print(line(lines[-1]), flush=True)
    return lines


def make(studio: Studio, of: world.World, seed: int, row: Row, model) -> np.ndarray:
    positive, negative, latent = studio.conditioning(of)
    samples = node("TemporalUNetSVDSampler").execute(
        model, positive, negative, latent, seed, row.steps, MIN_CFG, MAX_CFG, "linear", row.sampler, row.scheduler
    ).result[0]
    return studio.decode(samples)


def line(values: dict) -> str:
    return "| " + " | ".join(map(str, values.values())) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("TEMPORAL_UNET_HOST"), help="a ComfyUI checkout")
    parser.add_argument("--worlds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if not args.host:
        sys.exit("fewer_steps.py: name a ComfyUI checkout with --host or in TEMPORAL_UNET_HOST.")
    boot(args.host)
    print("share of a call by depth:", {depth: round(share_of_a_call(depth), 3) for depth in (1, 2, 3)})
    print("| way | cost | full steps | to 20 | to 60 | to the truth | center |\n|---|---|---|---|---|---|---|")
    with torch.inference_mode():
        lines = measure(Studio(), args.worlds, tuple(row for row in ROWS if args.only in row.name))
    if args.json:
        args.json.write_text("[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n")


if __name__ == "__main__":
    main()
