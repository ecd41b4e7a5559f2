"""What happens to long videos? Joints of windows, loops, chained clips, memory, on worlds that training never saw.

    python dev.py bench long [-- --worlds 4 --only windows drift loop chain path memory --json FILE]

A *jump* is the root of the mean squared difference of two adjacent frames. A sprite that flies for long ends up elsewhere than the
truth's, since errors of its heading add up; so `appearance` compares each frame with the truth drawn where the sprite is seen.
"""

import argparse
import json
import os
import resource
import sys
from pathlib import Path

import numpy as np

from support.host_in_process import boot, node
from tools.bench import quality
from tools.miniature import world

LONG = 100  # frames
LOOP = 32  # frames
SEGMENTS = 5
# drift: windows that do not keep the image's colors; handed: windows whose images are taken from the step before
PARTS = ["memory", "windows", "drift", "handed", "loop", "chain", "path"]


def jumps(video: np.ndarray, closed_loop: bool = False) -> np.ndarray:
    """Of each frame to the next [t - 1]; in a loop also of the last to the first [t]."""
    following = np.roll(video, -1, axis=0)
    every = np.sqrt(np.square(following - video).mean((1, 2, 3)))
    return every if closed_loop else every[:-1]


def appearance(video: np.ndarray, of: world.World) -> np.ndarray:
    """PSNR [t] of each frame against the truth with its sprite where the frame has it, pointing where it flies there."""
    centres = quality.centres_of(video, of)
    flown = np.gradient(centres, axis=0)
    headings = np.arctan2(flown[:, 1], flown[:, 0])
    headings[0] = of.heading
    truth = world.render(of, len(video), (centres, headings))
    return quality.score(video, truth).psnr


def joints(studio, frames: int, overlap: int, steps: int) -> np.ndarray:
    """The frames before a window's first or after a window's last in the last step, where a joint would be seen."""
    bridge = type(studio.model.model.diffusion_model).__module__.removesuffix("model.host_unet")
    windows, trained = (sys.modules[bridge + name] for name in ("sampling.windows", "model.trained_length"))
    length = trained.automatic_length(studio.model, frames)
    starts = windows.window_starts(frames, length, overlap, steps - 1, closed_loop=False)
    ends = [start + length for start in starts if start + length < frames]
    return np.array(sorted({*(start - 1 for start in starts if start), *(end - 1 for end in ends)}))


def over_windows(studio, worlds: int, steps: int, kind: str = "", **options) -> dict:
    """Clips of LONG frames in windows with these inputs of Video Options, against clips of one window; `kind` names them."""
    chosen = node("TemporalUNetVideoOptions").execute(**options).result[0]
    overlap = world.FRAMES // 2
    at = joints(studio, LONG, overlap, steps)
    rows = []
    for index, of in enumerate(quality.held_out(worlds)):
        video = studio.make(of, seed=index, frames=LONG, steps=steps, options=chosen)
        short = studio.make(of, seed=index, steps=steps)
        every = jumps(video)
        true_jumps = jumps(world.render(of, LONG).frames)
        seen, alone = appearance(video, of), appearance(short, of)
        rows.append({
            "seam": every[at].mean() / np.median(every), "largest_jump": every.max() / np.median(every),
            "truth_largest_jump": true_jumps.max() / np.median(true_jumps),
            "appearance": _by(seen, world.FRAMES), "one_window": alone[1:].mean(),
            "centre": _by(quality.score(video, world.render(of, LONG)).centre, world.FRAMES),
        })
        print(f"windows {index}{kind}: seam {rows[-1]['seam']:.2f}, appearance {rows[-1]['appearance']}", flush=True)
    return _mean(rows)


def loops(studio, worlds: int, steps: int) -> dict:
    """Clips of LOOP frames, closed."""
    rows = []
    for index, of in enumerate(quality.held_out(worlds)):
        every = jumps(studio.make(of, seed=index, frames=LOOP, steps=steps, closed_loop=True), closed_loop=True)
        rows.append({"last_to_first": every[-1] / np.median(every), "largest_jump": every.max() / np.median(every)})
        print(f"loop {index}: last to first {rows[-1]['last_to_first']:.2f}", flush=True)
    return _mean(rows)


def chain(studio, of: world.World, seed: int, steps: int, guidance: str, keep_colors: bool) -> np.ndarray:
    """SEGMENTS clips, each continued from the last frame of the one before, as a user's workflow would."""
    import torch

    positive, negative, latent = studio.conditioning(of)
    video = None
    for segment in range(SEGMENTS):
        samples = node("TemporalUNetSVDSampler").execute(
            studio.model, positive, negative, latent, seed + segment, steps, quality.MIN_CFG, quality.MAX_CFG, guidance, "euler",
            "karras",
        ).result[0]
        clip = torch.from_numpy(studio.decode(samples))
        video = clip if video is None else node("TemporalUNetJoinVideo").execute(video, clip).result[0]
        positive, negative, latent = node("TemporalUNetContinueVideo").execute(
            video, studio.vae, world.FRAMES, of.motion_bucket_id, of.fps, keep_colors=keep_colors
        ).result[:3]
    return video.numpy()


def drift(video: np.ndarray, of: world.World) -> dict:
    """Of the backdrop in the last segment: the error of its mean color (of 255), and the ratio of its contrast to the truth's."""
    truth = world.backdrop(of)
    centres = quality.centres_of(video, of)
    y, x = np.mgrid[:world.SIZE, :world.SIZE]
    frames = range(len(video) - world.FRAMES, len(video))
    away = [np.hypot(x - centres[i, 0], y - centres[i, 1]) > 24 for i in frames]
    color = np.mean([np.abs((video[i] - truth)[mask].mean(0)).max() for i, mask in zip(frames, away, strict=True)])
    contrast = np.mean([video[i][mask].std() / truth[mask].std() for i, mask in zip(frames, away, strict=True)])
    return {"colour": 255 * color, "contrast": contrast}


def chains(studio, worlds: int, steps: int) -> dict:
    """Drift over SEGMENTS chained clips, and the jumps after their joints, by guidance and with or without kept colors."""
    report = {}
    for guidance in ("linear", "triangle"):
        for keep in (True, False):
            rows = []
            for index, of in enumerate(quality.held_out(worlds)):
                video = chain(studio, of, seed=10 * index, steps=steps, guidance=guidance, keep_colors=keep)
                every = jumps(video)
                rows.append({
                    **drift(video, of), "joint": every[world.FRAMES - 1::world.FRAMES - 1].mean() / np.median(every),
                    "appearance": _by(appearance(video, of), world.FRAMES - 1),
                })
            report[name := f"{guidance}, {'colours kept' if keep else 'as made'}"] = _mean(rows)
            print(name, report[name], flush=True)
    return report


def paths(studio, worlds: int, steps: int) -> dict:
    """Center error (pixels) along a drawn path of LONG frames, which a ControlNet is shown.

    `first_hints_again`: how far from the path a net would lead that sees the first window's images in every window.
    """
    rows = []
    for index, of in enumerate(quality.held_out(worlds)):
        path, _ = world.drawn_path(of, world.HELD_OUT + index, LONG)
        made = studio.make(of, seed=index, frames=LONG, steps=steps, path=path)
        away = np.linalg.norm(quality.centres_of(made, of) - path, axis=1)
        first_again = path[np.arange(LONG) % world.FRAMES]
        rows.append({
            "centre": away[1:].mean(), "by_window": _by(away, world.FRAMES), "worst_frame": away.max(),
            "first_hints_again": np.linalg.norm(first_again - path, axis=1).mean(),
        })
        print(f"path {index}: {rows[-1]['centre']:.2f} px, {rows[-1]['by_window']}", flush=True)
    return _mean(rows)


def memory(studio, steps: int = 2) -> dict:
    """The process's peak of resident memory (MiB) after clips of 50 (twice), 100 and 1000 frames, latents only."""
    of = quality.held_out(1)[0]
    peaks = {}
    for name, frames in (("50", 50), ("50 again", 50), ("100", 100), ("1000", 1000)):
        positive, negative, latent = studio.conditioning(of, frames)
        node("TemporalUNetSVDSampler").execute(
            studio.model, positive, negative, latent, 0, steps, quality.MIN_CFG, quality.MAX_CFG, "linear", "euler", "karras"
        )
        peaks[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        print(f"memory after {name} frames: {peaks[name]} MiB", flush=True)
    return peaks


def _by(values: np.ndarray, length: int) -> list[float]:
    """Means of every `length` values in turn."""
    return [round(float(values[i:i + length].mean()), 2) for i in range(0, len(values), length)]


def _mean(rows: list[dict]) -> dict:
    """Means over the worlds; `each` keeps the unaveraged figures of every world."""
    means = {key: np.float64(np.mean([row[key] for row in rows], axis=0)).round(2).tolist() for key in rows[0]}
    each = {key: [round(float(row[key]), 2) for row in rows] for key in rows[0] if not isinstance(rows[0][key], list)}
    return {**means, "each": each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("TEMPORAL_UNET_HOST"), help="a ComfyUI checkout")
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=quality.STEPS)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if not args.host:
        sys.exit("long_clips.py: name a ComfyUI checkout with --host or in TEMPORAL_UNET_HOST.")
    boot(args.host)
    import torch

    parts = {
        "memory": memory, "windows": lambda studio: over_windows(studio, args.worlds, args.steps),
        "drift": lambda studio: over_windows(studio, args.worlds, args.steps, ", colors free", keep_colors=False),
        "handed": lambda studio: over_windows(studio, args.worlds, args.steps, ", previous step", hand_over="previous step"),
        "loop": lambda studio: loops(studio, args.worlds, args.steps),
        "chain": lambda studio: chains(studio, args.worlds, args.steps),
        "path": lambda studio: paths(studio, args.worlds, args.steps),
    }
    with torch.inference_mode():
        studio = quality.Studio()
        report = {name: parts[name](studio) for name in args.only}
    text = json.dumps({"worlds": args.worlds, "steps": args.steps, **report}, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
