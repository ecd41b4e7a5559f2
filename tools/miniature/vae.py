"""A tiny image autoencoder for the moving world: 4 channels, 1/8 of the size, in the layout of TAESD.

TAESD (Bohan 2023, github.com/madebyollin/taesd) is what the host's Load VAE reads under the keys `taesd_encoder.N…` and
`taesd_decoder.N…`. Its full width is more than this world needs, so a narrower network with fewer blocks is trained and
stored in the full layout, its missing channels and blocks as zeros: an all-zero block is the identity on what a ReLU left.

    python -m tools.miniature.vae            # trains, about 5 minutes on two idle CPU cores
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tools.miniature import world
from tools.miniature.training import Run, arguments

SCALE = 0.18215  # by which the host multiplies latents of SD 1 and SVD before it adds noise
FULL = 64  # TAESD's width
WIDTHS = (16, 32, 64, 64)  # of ours at full, half, quarter, eighth size
BLOCKS = (0, 1, 1, 3)  # encoder blocks at each size; TAESD has 1, 3, 3, 3
DECODER_BLOCKS = (1, 1, 2, 3)  # decoder blocks at each size
FULL_BLOCKS = (1, 3, 3, 3)


class Clamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv(x) + x)


def _conv(n_in: int, n_out: int, **more) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, **more)


def _stage(width: int, blocks: int, full: int) -> list[nn.Module]:
    """As many layers as TAESD has here: our blocks, then ReLUs in place of those that ours leaves out."""
    return [Block(width) if i < blocks else nn.ReLU() for i in range(full)]


def encoder(widths=WIDTHS, blocks=BLOCKS) -> nn.Sequential:
    layers = [_conv(3, widths[0]), *_stage(widths[0], blocks[0], FULL_BLOCKS[0])]
    for level in (1, 2, 3):
        layers.append(_conv(widths[level - 1], widths[level], stride=2, bias=False))
        layers += _stage(widths[level], blocks[level], FULL_BLOCKS[level])
    return nn.Sequential(*layers, _conv(widths[3], 4))


def decoder(widths=WIDTHS, blocks=DECODER_BLOCKS) -> nn.Sequential:
    layers = [Clamp(), _conv(4, widths[3]), nn.ReLU(), *_stage(widths[3], blocks[3], 3)]
    for level in (2, 1, 0):
        layers += [nn.Upsample(scale_factor=2), _conv(widths[level + 1], widths[level], bias=False)]
        layers += _stage(widths[level], blocks[level], FULL_BLOCKS[level])
    return nn.Sequential(*layers, _conv(widths[0], 3))


class TinyAutoencoder(nn.Module):
    """The host's TAESD: pixels [n, 3, h, w] from 0 to 1, raw latents [n, 4, h/8, w/8] of standard deviation 1/0.18215."""

    def __init__(self, widths=WIDTHS, blocks=BLOCKS, decoder_blocks=DECODER_BLOCKS):
        super().__init__()
        self.taesd_encoder = encoder(widths, blocks)
        self.taesd_decoder = decoder(widths, decoder_blocks)
        self.register_buffer("vae_scale", torch.tensor(SCALE))
        self.register_buffer("vae_shift", torch.tensor(0.0))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.taesd_encoder(pixels) / self.vae_scale + self.vae_shift

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.taesd_decoder((latents - self.vae_shift) * self.vae_scale)


def full_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same autoencoder at TAESD's own width and depth, with zeros for what is not there."""
    full = TinyAutoencoder((FULL,) * 4, FULL_BLOCKS, FULL_BLOCKS).state_dict()
    for key, value in full.items():
        value.zero_()
        if key in state:
            value[tuple(slice(n) for n in state[key].shape)] = state[key]
    return full


def batch(rng: np.random.Generator, size: int, crop: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """(pixels [n, 3, crop, crop], weights [n, 1, crop, crop]) of a training step: views around the sprite, weighted to it."""
    pixels, weights = [], []
    for _ in range(size):
        clip = world.render(world.sample_world(int(rng.integers(world.HELD_OUT))), frames=1)
        corner = clip.centres[0] - crop / 2 + rng.uniform(-22, 22, 2) * crop / 64
        x, y = np.clip(corner.round().astype(int), 0, world.SIZE - crop)
        pixels.append(clip.frames[0, y:y + crop, x:x + crop])
        weights.append(clip.sprite[0, y:y + crop, x:x + crop])
    pixels = torch.from_numpy(np.stack(pixels)).movedim(-1, 1).contiguous()
    weights = F.max_pool2d(torch.from_numpy(np.stack(weights))[:, None], 7, 1, 3)
    return pixels, 1 + 4 * weights


@torch.no_grad()
def start_as_average(model: TinyAutoencoder, gain: float = 2.5, offset: float = 1.2) -> None:
    """Sets the first weights so that three latent channels are the mean colors of 8x8 pixels, and come back as such.

    Colors are right from the first step and training only adds the detail: a quarter of the time. `offset` keeps values
    above 0 where a ReLU follows.
    """
    for block in (m for m in model.modules() if isinstance(m, Block)):
        block.conv[-1].weight.zero_()
        block.conv[-1].bias.zero_()
    middle, mean_of_four = torch.zeros(3, 3), torch.zeros(3, 3)
    middle[1, 1] = 1
    mean_of_four[1:, 1:] = 0.25
    for part in (model.taesd_encoder, model.taesd_decoder):
        for conv in (m for m in part if isinstance(m, nn.Conv2d)):
            kernel = mean_of_four if conv.stride == (2, 2) else middle
            for i in range(min(3, conv.out_channels)):
                conv.weight[i] = 0
                conv.weight[i, i] = kernel
            if conv.bias is not None:
                conv.bias[:3] = 0
    first, last = model.taesd_decoder[1], model.taesd_decoder[-1]
    model.taesd_encoder[-1].weight[:3] *= gain
    model.taesd_encoder[-1].bias[:3] = -0.3 * gain
    first.bias[:3] = offset
    last.weight[:3] /= gain
    last.bias[:3] = 0.3 - offset / gain


def loss_of(model: TinyAutoencoder, pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted squared error, decoded with a little noise on the latents, as a diffusion model leaves it."""
    z = model.taesd_encoder(pixels).float()
    error = model.taesd_decoder(z + 0.03 * torch.randn_like(z)).float() - pixels
    return (weights * (error.square() + 0.01 * error.abs())).mean()


@torch.no_grad()
def psnr(model: TinyAutoencoder, clips: int = 16) -> float:
    """Mean PSNR in dB of whole held-out images."""
    total = 0.0
    for i in range(clips):
        clip = world.render(world.sample_world(world.HELD_OUT + i), frames=1)
        pixels = torch.from_numpy(clip.frames).movedim(-1, 1).to(model.vae_scale.device)
        total += -10 * (model.decode(model.encode(pixels)).clamp(0, 1) - pixels).square().mean().log10().item()
    return total / clips


@torch.no_grad()
def normalize(model: TinyAutoencoder, clips: int = 64) -> None:
    """Sets vae_scale and vae_shift so that raw latents times 0.18215 have mean 0 and standard deviation 1."""
    pixels = np.concatenate([world.render(world.sample_world(i), frames=1).frames for i in range(clips)])
    z = model.taesd_encoder(torch.from_numpy(pixels).movedim(-1, 1).to(model.vae_scale.device))
    model.vae_scale.fill_(SCALE * z.std())
    model.vae_shift.fill_(-z.mean() / z.std() / SCALE)


def load(work: Path, device="cpu") -> TinyAutoencoder:
    """The trained autoencoder in its narrow form, as the training of the UNet uses it."""
    file = work / "vae_done.pt"
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing: run `python -m tools.miniature.vae` first.")
    model = TinyAutoencoder()
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.requires_grad_(False).eval().to(device)


def main() -> None:
    args = arguments(__doc__.splitlines()[0], steps=450, batch=16, rate=2e-3).parse_args()
    torch.manual_seed(args.seed)
    model = TinyAutoencoder()
    start_as_average(model)
    model.to(args.device)
    run = Run("vae", model, args, average=0.995)
    averaged = TinyAutoencoder().to(args.device)
    while run.progress < 1:
        pixels, weights = batch(run.seed_step(), args.batch)
        with run.precision():
            loss = loss_of(model, pixels.to(args.device), weights.to(args.device))
        run.update(loss)
        if run.step % 25 == 0:
            run.log()
        if run.step % 50 == 0 or run.progress >= 1:
            averaged.load_state_dict(run.mean)
            run.log(psnr=psnr(averaged))
            normalize(averaged)
            torch.save(averaged.state_dict(), args.work / "vae_done.pt")
            run.save()


if __name__ == "__main__":
    main()
