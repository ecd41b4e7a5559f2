"""The sheet of a preview: the frames of a latent clip as small images in one JPEG."""

import base64
import io
import math
from dataclasses import dataclass, replace

import comfy.taesd.taesd
import torch
from PIL import Image
from torch.nn import functional as F

SHEET_PIXELS = 1024 * 1024
LONGEST, SHORTEST = 128, 48  # pixels of a frame's longer side: where there is room, and before frames are left out
LONGEST_DECODED = 256  # with detail that a latent does not show
LONGEST_OF_TAKES = 1024  # of several takes side by side
DECODE_BATCH = 4  # frames of at most 512x512 pixels: about the memory of the host's own preview of one large image
JPEG_QUALITY = 80
PRIOR = 0.01  # weight of a latent format's own factors against the fit, as a variance of the latent


def draw(latents: torch.Tensor, colors, takes: int = 1) -> dict:
    """The frames of latents [takes * frames, c, h, w] as one JPEG, with what is needed to cut it up.

    `colors` is a LatentColors, a DecodedColors, or, of decoded frames, DecodedFrames. Several takes are shown at the same time: a
    frame on the sheet holds that frame of all of them, row by row. The result:
        frames: the number of frames of the clip
        shown: the indices of the frames on the sheet, row by row from its top left
        columns, rows: of the sheet; cells after the last frame are black
        width, height: of a frame on the sheet, in pixels
        image: a data URL
    """
    total, _, height, width = latents.shape
    frames, columns = total // takes, math.ceil(math.sqrt(takes))
    rows = math.ceil(takes / columns)
    longest = min(columns * colors.longest, LONGEST_OF_TAKES)
    sheet = lay_out(frames, columns * width * colors.pixels, rows * height * colors.pixels, longest)
    width, height = max(1, sheet.width // columns), max(1, sheet.height // rows)  # of a take
    images = side_by_side([colors(take[:: sheet.shown.step], width, height) for take in latents.split(frames)], columns)
    sheet = replace(sheet, width=images.shape[-1], height=images.shape[-2])
    return {
        "frames": frames, "shown": list(sheet.shown), "columns": sheet.columns, "rows": sheet.rows,
        "width": sheet.width, "height": sheet.height, "image": _jpeg(images, sheet),
    }


@dataclass(frozen=True)
class Sheet:
    """`shown` frames of `width` x `height` pixels in `rows` of `columns`."""

    shown: range
    columns: int
    rows: int
    width: int
    height: int


def lay_out(frames: int, width: int, height: int, longest: int = LONGEST) -> Sheet:
    """A nearly square sheet of about SHEET_PIXELS at most for frames of width x height pixels, which it never enlarges.

    A frame's longer side has at most `longest` pixels. Of a clip too long for that it has fewer, down to SHORTEST; of one too
    long for that too, only every second frame is shown, or every third, and so on.
    """
    longer = max(width, height)
    fewest = width * height * min(1, SHORTEST / longer) ** 2
    shown = range(0, frames, math.ceil(frames * fewest / SHEET_PIXELS))
    scale = min(1, longest / longer, math.sqrt(SHEET_PIXELS / (len(shown) * width * height)))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(len(shown), math.ceil(math.sqrt(len(shown) * height / width)))
    return Sheet(shown, columns, math.ceil(len(shown) / columns), width, height)


def side_by_side(takes: list[torch.Tensor], columns: int) -> torch.Tensor:
    """Images [n, 3, h, w] of several takes as images [n, 3, rows * h, columns * w]; what is left of the last row is black."""
    black = [-torch.ones_like(takes[0])] * (-len(takes) % columns)
    takes = takes + black
    return torch.cat([torch.cat(takes[start:start + columns], -1) for start in range(0, len(takes), columns)], -2)


def colors_for(previewer, latent_format):
    """Quick colors, latent to RGB, and better ones: TAESD where the previewer has it, else None.

    Packs put previewers of their own in the host's place. Some extend the host's for TAESD and have none, or not under its name.
    """
    quick = LatentColors(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
    taesd = getattr(previewer, "taesd", None)
    return quick, DecodedColors(taesd) if isinstance(taesd, comfy.taesd.taesd.TAESD) else None


def fitted(colors: "LatentColors", latent: torch.Tensor, image: torch.Tensor) -> "LatentColors":
    """The colors that fit best to `image` [h, w, 3] in 0..1, of which `latent` [c, h, w] is the latent in the scale of x0.

    They suit any VAE. What the image does not show, as a gray one shows no colors, stays as in `colors`: "Ridge Regression"
    (Hoerl and Kennard 1970) towards these in place of zero.
    """
    x, y = latent.flatten(1).T.float().cpu(), image.flatten(0, 1).float().cpu() * 2 - 1
    mean, target = x.mean(0), y.mean(0)
    x, prior = x - mean, colors.factors.T
    change = torch.linalg.solve(x.T @ x + PRIOR * len(x) * torch.eye(x.shape[1]), x.T @ (y - target - x @ prior))
    factors = prior + change
    return LatentColors(factors.tolist(), (target - mean @ factors).tolist())


class LatentColors:
    """Latent to RGB by the factors [c][3] and bias [3] of a latent format, as the host's Latent2RGBPreviewer."""

    pixels = 1  # of an image's side, for each of the latent's
    longest = LONGEST

    def __init__(self, factors: list, bias: list | None):
        self.factors = torch.tensor(factors).T
        self.bias = None if bias is None else torch.tensor(bias)

    def __call__(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """latents [n, c, h, w] to images [n, 3, height, width] in -1..1."""
        small = shrink(latents, width, height).movedim(1, -1)
        bias = None if self.bias is None else self.bias.to(small)
        return F.linear(small, self.factors.to(small), bias).movedim(-1, 1)


class DecodedColors:
    """The host's TAESD on latents that are made smaller first: whole, a clip would take it as long as some of the steps."""

    pixels, longest = 8, LONGEST

    def __init__(self, taesd):
        self.taesd = taesd

    def __call__(self, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """latents [n, c, h, w] to images [n, 3, height, width] in about -1..1."""
        # A latent of half the image's size has about as many values as the image; a smaller one would blur it.
        h, w = min(latents.shape[-2], math.ceil(height / 2)), min(latents.shape[-1], math.ceil(width / 2))
        batches = shrink(latents, w, h).split(DECODE_BATCH)
        return torch.cat([shrink(self.taesd.decode(batch), width, height) for batch in batches])


class DecodedFrames:
    """Frames that are decoded already."""

    pixels, longest = 1, LONGEST_DECODED

    def __call__(self, frames: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """frames [n, 3, h, w] in 0..1 to images [n, 3, height, width] in -1..1, one by one: together they may be a GiB."""
        return torch.cat([shrink(frame[None], width, height) for frame in frames]) * 2 - 1


def shrink(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """images [n, c, h, w], no smaller than that, to [n, c, height, width]."""
    if images.shape[-2:] == (height, width):  # the usual size, 1024x576: half the time of a sheet on a CPU
        return images
    # Means, then less than a half by interpolation: Apple's devices lack "area" for sizes that do not divide.
    means = F.avg_pool2d(images, (images.shape[-2] // height, images.shape[-1] // width))
    return F.interpolate(means, (height, width), mode="bilinear")


def _jpeg(images, sheet):
    """The data URL of the sheet with these images [n, 3, height, width] in -1..1."""
    pixels = ((images + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
    empty = pixels.new_zeros(sheet.rows * sheet.columns - len(pixels), *pixels.shape[1:])
    cells = torch.cat([pixels, empty]).unflatten(0, (sheet.rows, sheet.columns))
    whole = cells.permute(0, 3, 1, 4, 2).reshape(sheet.rows * sheet.height, sheet.columns * sheet.width, 3)
    file = io.BytesIO()
    # Full color resolution, or neighboring frames would share the color of their borders.
    Image.fromarray(whole.cpu().numpy()).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
