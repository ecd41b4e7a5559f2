"""Looks at the files that a user names for `dev.py run`, in the host's Python, before a server is started.

    python -m tools.user_files --image PATH --photo PNG [--svd PATH]

writes the image as a PNG, upright and in RGB, which every host loads whatever the file was called. Prints what is wrong with
the first file that cannot be used, and exits with 1.
"""
import argparse
import sys
from pathlib import Path

from PIL import Image, ImageOps

from unet import UNetFileError, open_checkpoint

PARTS = {"first_stage_model.": "VAE", "conditioner.embedders.0.open_clip.": "image encoder"}  # by the names of their tensors
EXPECTED = "expected the full checkpoint of Stable Video Diffusion, svd.safetensors or svd_xt.safetensors"


def write_photo(image: Path, photo: Path) -> str | None:
    """None, or why it could not be read."""
    try:
        with Image.open(image) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith("I"):  # gray in 16 bits, which Pillow and the host cut off at 255
                upright = upright.convert("I").point(lambda value: value * (1 / 256))
            upright = upright.convert("RGB")
    except Exception as error:  # noqa: BLE001 (each format of Pillow has errors of its own)
        return f"--image {image}: it is no image that can be read ({error}); expected a PNG, JPEG or WebP file."
    photo.parent.mkdir(parents=True, exist_ok=True)
    upright.save(photo, "PNG")
    return None


def svd_fault(path: Path) -> str | None:
    """None, or why it is no full checkpoint of SVD; reads its header only."""
    try:
        checkpoint = open_checkpoint(path)
    except UNetFileError as error:
        return f"--svd {error} For --svd: {EXPECTED}."
    if checkpoint.family.name != "svd":
        return f"--svd {path}: it holds {checkpoint.family.title}; {EXPECTED}."
    missing = [part for prefix, part in PARTS.items() if not any(name.startswith(prefix) for name in checkpoint.shapes)]
    return f"--svd {path}: it holds no {' and no '.join(missing)}; {EXPECTED}." if missing else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--svd", type=Path)
    args = parser.parse_args()
    fault = write_photo(args.image, args.photo) or (args.svd and svd_fault(args.svd))
    if fault:
        print(fault)
        sys.exit(1)
