"""`dev.py run`: a photo to a video by an example workflow, with the options of the command line. Standard library only."""
from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools.environments import ROOT, DevError, Host
from tools.progress import watched
from tools.server import Server, ServerError, failure, link_file

WORKFLOWS = ROOT / "example_workflows" / "api"
OF_SVD, OF_MINIATURE = "1 Image to Video", "6 Try it without a download"
LOADER, CONDITIONING, SAMPLER = "TemporalUNetCheckpointLoader", "TemporalUNetSVDConditioning", "TemporalUNetSVDSampler"
PHOTO, CHECKPOINT = "photo.png", "svd.safetensors"  # as the host sees them: it lists no file by content
VIDEO_SUFFIXES = (".mp4", ".webm", ".webp")


@dataclass(frozen=True)
class Option:
    """A number of the command line, and the inputs of the workflow, (class_type, name), that it sets."""

    text: str
    least: float
    most: float
    inputs: tuple[tuple[str, str], ...]
    step: int = 1
    kind: type = int

    def parse(self, text: str) -> float:
        """The value; raises ArgumentTypeError, which says what is expected."""
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if value is None or not self.least <= value <= self.most or value % self.step and self.kind is int:
            raise argparse.ArgumentTypeError(f"{text!r} cannot be used: expected {self.expected}.")
        return value

    @property
    def expected(self) -> str:
        what = "a number" if self.kind is float else f"a multiple of {self.step}" if self.step > 1 else "a whole number"
        return f"{what} from {self.least} to {self.most}"

    def help(self) -> str:
        """What it is, its range, and what the workflows have for it."""
        kind, name = self.inputs[0]
        svd, miniature = (node_of(workflow(file), kind)["inputs"][name] for file in (OF_SVD, OF_MINIATURE))
        return f"{self.text}; {self.expected} (default: {svd}" + (")" if svd == miniature else f", miniature: {miniature})")


OPTIONS = {
    "width": Option("width of the video in pixels", 16, 16384, ((CONDITIONING, "width"),), step=8),
    "height": Option("height of the video in pixels", 16, 16384, ((CONDITIONING, "height"),), step=8),
    "frames": Option("how many frames: SVD was trained on 14, SVD-XT on 25", 1, 4096, ((CONDITIONING, "video_frames"),)),
    "steps": Option("denoising steps: more take longer and look cleaner", 1, 10000, ((SAMPLER, "steps"),)),
    "fps": Option("frames per second", 1, 1024, ((CONDITIONING, "fps"),)),
    "motion_bucket_id": Option(
        "how much moves: 40 is calm, 127 natural, 200 lively", 1, 1023, ((CONDITIONING, "motion_bucket_id"),)
    ),
    "max_cfg": Option("guidance of the last frame: higher keeps closer to the photo", 0, 100, ((SAMPLER, "max_cfg"),), kind=float),
    "seed": Option("another seed, another motion", 0, 2**64 - 1, ((CONDITIONING, "seed"), (SAMPLER, "seed"))),
}


def existing_file(text: str) -> Path:
    """A path of the command line; raises ArgumentTypeError where no file is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file: name one that exists.")
    return Path(text)


def folder(text: str) -> Path:
    """A folder of the command line, which need not exist yet; raises ArgumentTypeError where a file is in its place."""
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file: name a folder.")
    return Path(text)


def make_folder(out: Path) -> None:
    """Make the folder that the video will go to; raises DevError where nothing can be written there, before the work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise DevError(f"--out {out}: no file can be written there ({error.strerror}): name another folder.") from None


def workflow(name: str) -> dict:
    """An API-mode workflow of this repository."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def node_of(prompt: dict, class_type: str) -> dict:
    return next(node for node in prompt.values() if node["class_type"] == class_type)


def lay_out(host: Host, base: Path, image: Path, svd: Path | None) -> None:
    """Put the user's files into the base directory; raises DevError where they are no image or no checkpoint of SVD.

    The host's Python looks at them, by their content.
    """
    asked = ["--image", image.absolute(), "--photo", base / "input" / PHOTO, *(["--svd", svd.absolute()] if svd else [])]
    done = subprocess.run([host.python, "-m", "tools.user_files", *asked], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DevError(done.stdout.strip() or "tools.user_files failed: see its message above.")
    if svd:
        link_file(svd, base / "models" / "checkpoints" / CHECKPOINT)


def prepared_prompt(svd: bool, options: dict[str, float | None]) -> dict:
    """The prompt for the photo and the checkpoint (else the miniature) that `lay_out` has put there."""
    prompt = workflow(OF_SVD if svd else OF_MINIATURE)
    node_of(prompt, "LoadImage")["inputs"]["image"] = PHOTO
    if svd:
        node_of(prompt, LOADER)["inputs"]["ckpt_name"] = CHECKPOINT
    for option, value in options.items():
        for kind, name in OPTIONS[option].inputs if value is not None else ():
            node_of(prompt, kind)["inputs"][name] = value
    return prompt


def run_prompt(server: Server, prompt: dict) -> Path:
    """The file that a prompt saved; shows meanwhile what the server works on. Raises ServerError where it failed."""
    entry = watched(server, prompt)
    if failure(entry):
        raise ServerError(f"The workflow failed: {failure(entry)}")
    return best_output(entry, server.base)


def best_output(entry: dict, base: Path) -> Path:
    """The saved file in a history entry, a video before an image; hosts list them under different names."""
    files = [base / item["type"] / item["subfolder"] / item["filename"]
             for output in entry["outputs"].values() for items in output.values() if isinstance(items, list)
             for item in items if isinstance(item, dict) and "filename" in item]
    if not files:
        raise DevError(f"The workflow ended without saving a file; its outputs are {entry['outputs']}.")
    return min(files, key=lambda file: (file.parent.name == "temp", file.suffix not in VIDEO_SUFFIXES))


def copy_under_a_free_name(made: Path, folder: Path) -> Path:
    names = (f"{made.stem}{n or ''}{made.suffix}" for n in range(10**6))
    free = next(path for path in (folder.absolute() / name for name in names) if not path.exists())
    shutil.copy(made, free)
    return free
