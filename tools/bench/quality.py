"""How good are the videos? Made ones against the true continuation, on worlds that training never saw.

As a library: boot a host (`host_in_process.boot`), then `Studio` makes videos through the pack's real nodes, `score` and `summary`
compare. As a command:

    python dev.py bench quality [-- --worlds 32 --json FILE --sheet FILE.webp]

PSNR and SSIM are scikit-image's, on frames 1 to 7 (frame 0 is given). Centers are in pixels of the 128x128 image.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from support.host_in_process import boot, node
from tools.miniature import world
from tools.miniature.lay_out import WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
CONTROLNET = "miniature_svd_controlnet_path.safetensors"  # next to them
STEPS, MIN_CFG, MAX_CFG = 20, 1.0, 1.5
BUCKETS = (40, 65, 90, 115, 140, 165, 190, 215, 240)  # at which the speed is measured
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # at which the ControlNet is measured


class Studio:
    """The miniature in a running host: makes videos of worlds as a user's workflow would."""

    def __init__(self, weights: Path = WEIGHTS):
        import comfy.sd
        import comfy.utils
        import folder_paths
        from safetensors import safe_open

        comfy.utils.PROGRESS_BAR_ENABLED = False
        self.weights = Path(weights)
        with safe_open(self.weights, framework="pt") as file:
            self.head_channels = int(file.metadata()["temporal_unet.head_channels"])
        folder_paths.add_model_folder_path("diffusion_models", str(self.weights.parent))
        tensors = comfy.utils.load_torch_file(str(self.weights), safe_load=True)
        self.vae = comfy.sd.VAE(sd=_under(tensors, "first_stage_model."))
        self.unet = _under(tensors, "model.diffusion_model.")
        self.model = node("TemporalUNetLoader").execute(unet_name=self.weights.name).result[0]
        self.controlnet = None
        if (self.weights.parent / CONTROLNET).exists():
            folder_paths.add_model_folder_path("controlnet", str(self.weights.parent))
            self.controlnet = node("TemporalUNetControlNetLoader").execute(control_net_name=CONTROLNET).result[0]

    def conditioning(self, of: world.World, frames: int = world.FRAMES, augmentation_level: float = 0.0):
        """(positive, negative, latent) for the video that starts with this world's first frame."""
        import torch

        image = torch.from_numpy(world.render(of, 1).frames)
        return node("TemporalUNetSVDConditioning").execute(
            image, self.vae, world.SIZE, world.SIZE, frames, of.motion_bucket_id, of.fps, augmentation_level
        ).result[:3]

    def decode(self, latent) -> np.ndarray:
        return node("VAEDecode")().decode(self.vae, latent)[0].float().numpy()

    def make(
        self, of: world.World, *, seed=0, steps=STEPS, cfg=(MIN_CFG, MAX_CFG), model=None, path=None, strength=1.0,
        frames=world.FRAMES, augmentation_level=0.0, **more
    ) -> np.ndarray:
        """The video [t, h, w, 3] by the pack's nodes.

        `model` in place of the miniature as it is; with `path` (centers [t, 2]) the ControlNet leads the sprite along it at
        `strength`; `more` for the sampler.
        """
        positive, negative, latent = self.conditioning(of, frames, augmentation_level)
        if path is not None:
            import torch

            positive, negative = node("TemporalUNetApplyControlNetResiduals").execute(
                positive, negative, self.controlnet, torch.from_numpy(world.position_map(path)), strength, 0.0, 1.0
            ).result
        samples = node("TemporalUNetSVDSampler").execute(
            model or self.model, positive, negative, latent, seed, steps, *cfg, "linear", "euler", "karras", **more
        ).result[0]
        return self.decode(samples)

    def host_model(self):
        """The host's own UNet on the same weights, as a MODEL of the host."""
        from support.oracle import ROWS, host_model

        return host_model(self.unet, ROWS["svd"], head_channels=self.head_channels)

    def host_make(self, model, of: world.World, *, seed=0, steps=STEPS, cfg=(MIN_CFG, MAX_CFG)) -> np.ndarray:
        """The video [t, h, w, 3] by the host's own nodes, except the conditioning (whose noise has no seed there)."""
        positive, negative, latent = self.conditioning(of)
        guided = node("VideoLinearCFGGuidance")().patch(model, cfg[0])[0]
        samples = node("KSampler")().sample(
            guided, seed, steps, cfg[1], "euler", "karras", positive, negative, latent, 1.0
        )[0]
        return self.decode(samples)


def _under(tensors: dict, prefix: str) -> dict:
    return {key[len(prefix):]: value for key, value in tensors.items() if key.startswith(prefix)}


def find_centre(frame: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """The sprite's center (x, y): the centroid of the largest patch that differs from the known backdrop; NaN if none."""
    from skimage.measure import label

    differs = np.clip((np.abs(frame - backdrop).max(-1) - 0.15) / 0.15, 0, 1)
    patches = label(differs > 0.5)
    if not patches.any():
        return np.full(2, np.nan)
    largest = 1 + np.bincount(patches.ravel())[1:].argmax()
    y, x = np.nonzero(_grown(patches == largest))
    share = differs[y, x]
    return np.array([(x * share).sum(), (y * share).sum()]) / share.sum()


def _grown(mask: np.ndarray) -> np.ndarray:
    from skimage.morphology import dilation

    return dilation(mask, np.ones((3, 3), bool))


def centres_of(video: np.ndarray, of: world.World) -> np.ndarray:
    """The sprite's center in each frame [t, 2]; in frames where none is found, the middle of the image."""
    backdrop = world.backdrop(of)
    found = np.array([find_centre(frame, backdrop) for frame in video])
    return np.where(np.isnan(found), (world.SIZE - 1) / 2, found)


@dataclass
class Score:
    """Of one video, for each of its frames."""

    psnr: np.ndarray  # dB
    ssim: np.ndarray
    centre: np.ndarray  # pixels between the sprite's center and where it truly is
    squared: np.ndarray  # mean squared error


def score(video: np.ndarray, truth: world.Clip) -> Score:
    """Compares a video [t, h, w, 3] with the true one."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    video = np.clip(video, 0, 1).astype(np.float32)
    pairs = list(zip(truth.frames, video, strict=True))
    return Score(
        psnr=np.array([99.0 if np.array_equal(a, b) else peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]),
        ssim=np.array([structural_similarity(a, b, data_range=1, channel_axis=-1) for a, b in pairs]),
        centre=np.linalg.norm(centres_of(video, truth.world) - truth.centres, axis=1),
        squared=np.array([np.square(a - b).mean() for a, b in pairs]),
    )


def repeat_first(truth: world.Clip) -> np.ndarray:
    """The baseline that lets nothing move."""
    return np.repeat(truth.frames[:1], len(truth.frames), axis=0)


def summary(scores: list[Score]) -> dict:
    """Means over videos and over frames 1 to the last; `psnr_by_frame` and so on keep the frames apart."""
    out = {}
    for name in ("psnr", "ssim", "centre"):
        by_frame = np.mean([getattr(s, name) for s in scores], axis=0)
        out[name] = round(float(by_frame[1:].mean()), 4)
        out[f"{name}_by_frame"] = [round(float(value), 3) for value in by_frame]
    out["centre_median"] = round(float(np.median([s.centre[1:] for s in scores])), 3)
    out["centre_worst_video"] = round(float(max(s.centre[1:].mean() for s in scores)), 2)
    out["psnr_of_mean_error"] = round(float(-10 * np.log10(np.mean([s.squared[1:] for s in scores]))), 3)
    return out


def held_out(count: int) -> list[world.World]:
    return [world.sample_world(world.HELD_OUT + i) for i in range(count)]


def straight(index: int) -> world.World:
    """A held-out world whose sprite crosses the middle without a bounce at any speed of BUCKETS."""
    of = world.sample_world(world.HELD_OUT + 500 + index)
    heading = of.heading
    start = tuple((world.SIZE - 1) / 2 - 44 * np.array([np.cos(heading), np.sin(heading)]))
    return world.with_motion(replace(of, start=start), 127, fps=6)


def speed(centres: np.ndarray) -> float:
    """Pixels a frame along the way."""
    return float(np.linalg.norm(np.diff(centres, axis=0), axis=1).mean())


def motion_response(studio: Studio, worlds: int = 4, buckets=BUCKETS, **settings) -> dict:
    """Does motion_bucket_id set the speed? Spearman's rank correlation over `buckets`, and the measured speeds."""
    from scipy.stats import spearmanr

    measured = np.array([
        [speed(centres_of(studio.make(world.with_motion(straight(n), bucket), **settings), straight(n)))
         for bucket in buckets] for n in range(worlds)
    ])
    true = world.SPEED * np.array(buckets) / 6
    return {
        "buckets": buckets, "true_speed": true.round(2).tolist(), "measured_speed": measured.mean(0).round(2).tolist(),
        "rank_correlation": round(float(np.mean([spearmanr(buckets, row).statistic for row in measured])), 4),
        "slope": round(float((measured.mean(0) * true).sum() / (true * true).sum()), 4),
    }


def path_following(studio: Studio, worlds: int = 16, strengths=STRENGTHS, **settings) -> tuple[dict, list[np.ndarray]]:
    """Does the ControlNet lead the sprite? Distances in pixels to the drawn path, and the videos of the first two worlds.

    `centre` is at strength 1, per frame and as a mean; `by_strength` for each of `strengths` the mean distance.
    """
    away = np.zeros((len(strengths), worlds, world.FRAMES))
    natural, rows, equal = [], [], []
    for index, of in enumerate(held_out(worlds)):
        path, headings = world.drawn_path(of, world.HELD_OUT + index)
        free = studio.make(of, seed=index, **settings)
        for i, strength in enumerate(strengths):
            made = studio.make(of, seed=index, path=path, strength=strength, **settings)
            away[i, index] = np.linalg.norm(centres_of(made, of) - path, axis=1)
            if strength == 0:
                equal.append(np.array_equal(made, free))
            if strength == 1 and index < 2:
                rows += [world.render(of, path=(path, headings)).frames, made]
        natural.append(np.linalg.norm(world.render(of).centres - path, axis=1)[1:].mean())
        print(f"path {index}: {away[strengths.index(1), index, 1:].mean():.2f} px at strength 1", flush=True)
    mean = away[:, :, 1:].mean((1, 2))
    at_one = away[strengths.index(1)]
    return {
        "worlds": worlds, "centre": round(float(mean[strengths.index(1)]), 3),
        "centre_by_frame": at_one.mean(0).round(2).tolist(), "centre_worst_video": round(float(at_one[:, 1:].mean(1).max()), 2),
        "strengths": strengths, "by_strength": mean.round(2).tolist(),
        "natural_path": round(float(np.mean(natural)), 2), "strength_0_is_bit_equal": all(equal),
    }, rows


def sheet(rows: list[np.ndarray], path: Path) -> None:
    """A contact sheet (WebP): a video a row."""
    from PIL import Image

    picture = np.concatenate([np.concatenate(list(np.clip(row, 0, 1)), axis=1) for row in rows], axis=0)
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path, quality=88, method=6)


def animation(rows: list[np.ndarray], path: Path, fps: int = 6) -> None:
    """A WebP that loops: the true videos above, what was made below; `rows` are true and made, alternating."""
    from PIL import Image

    gap = np.ones((len(rows[0]), rows[0].shape[1], 6, 3), dtype=np.float32)

    def side_by_side(videos):
        return np.concatenate([part for video in videos for part in (video, gap)][:-1], axis=2)

    above, below = side_by_side(rows[::2]), side_by_side(rows[1::2])
    frames = np.concatenate([above, np.ones_like(above[:, :6]), below], axis=1)
    pictures = [Image.fromarray((frame.clip(0, 1) * 255).round().astype(np.uint8)) for frame in frames]
    shown = [1000 // fps] * (len(pictures) - 1) + [800]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=shown, loop=0, quality=90, method=6)


def measure(studio: Studio, worlds: int, host_worlds: int, settings: dict) -> tuple[dict, list[np.ndarray]]:
    """The whole report, and the true and made videos of the first three worlds for a contact sheet.

    The host's own UNet and sampler make the first `host_worlds` videos too; what the autoencoder alone loses is measured
    on the first four.
    """
    results = {"repeat_first_frame": [], "miniature": [], "host": [], "autoencoder_alone": []}
    native = studio.host_model() if host_worlds else None
    rows, gap, started = [], 0.0, time.monotonic()
    for index, of in enumerate(held_out(worlds)):
        truth = world.render(of)
        made = studio.make(of, seed=index, **settings)
        results["repeat_first_frame"].append(score(repeat_first(truth), truth))
        results["miniature"].append(score(made, truth))
        if index < 4:
            results["autoencoder_alone"].append(score(_through(studio, truth.frames), truth))
        if index < host_worlds:
            theirs = studio.host_make(native, of, seed=index, **settings)
            results["host"].append(score(theirs, truth))
            gap = max(gap, float(np.abs(theirs - made).max()))
        if index < 3:
            rows += [truth.frames, made]
        last = results["miniature"][-1]
        print(f"world {index}: {last.psnr[1:].mean():.2f} dB, center {last.centre[1:].mean():.2f} px, "
              f"{time.monotonic() - started:.0f} s", flush=True)
    report = {name: {"worlds": len(scores), **summary(scores)} for name, scores in results.items() if scores}
    report["gain_dB"] = round(report["miniature"]["psnr"] - report["repeat_first_frame"]["psnr"], 3)
    if host_worlds:
        ours = summary(results["miniature"][:host_worlds])
        report["host_against_miniature"] = {
            "psnr": round(report["host"]["psnr"] - ours["psnr"], 4), "largest_pixel_difference": gap,
            "centre": round(report["host"]["centre"] - ours["centre"], 4),
        }
    return report, rows


def _through(studio: Studio, frames: np.ndarray) -> np.ndarray:
    import torch

    return studio.decode({"samples": studio.vae.encode(torch.from_numpy(frames))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("TEMPORAL_UNET_HOST"), help="a ComfyUI checkout")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--worlds", type=int, default=32)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--cfg", type=float, nargs=2, default=(MIN_CFG, MAX_CFG), metavar=("MIN", "MAX"))
    parser.add_argument("--host-worlds", type=int, help="how many of them the host's own UNet makes too (default: all)")
    parser.add_argument("--no-motion", action="store_true", help="leave out the response to motion_bucket_id")
    parser.add_argument("--motion-worlds", type=int, default=4)
    parser.add_argument("--path-worlds", type=int, default=16, help="how many worlds the ControlNet is measured on")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here: true and made, alternating")
    parser.add_argument("--animation", type=Path, help="write a looping WebP here: true above, made below")
    args = parser.parse_args()
    if not args.host:
        sys.exit("quality.py: name a ComfyUI checkout with --host or in TEMPORAL_UNET_HOST.")
    boot(args.host)
    import torch

    host_worlds = args.worlds if args.host_worlds is None else args.host_worlds
    settings = {"steps": args.steps, "cfg": tuple(args.cfg)}
    with torch.inference_mode():
        studio = Studio(args.weights)
        report, rows = measure(studio, args.worlds, host_worlds, settings)
        if not args.no_motion:
            report["motion"] = motion_response(studio, args.motion_worlds, **settings)
        if studio.controlnet is not None and args.path_worlds:
            report["path"], led = path_following(studio, args.path_worlds, **settings)
            rows += led
    report = {"settings": {**settings, "worlds": args.worlds}, **report}
    text = "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in report.items()) + "\n}\n"
    print(text)
    if args.json:
        args.json.write_text(text)
    if args.sheet:
        sheet(rows, args.sheet)
    if args.animation:
        animation(rows, args.animation)


if __name__ == "__main__":
    main()
