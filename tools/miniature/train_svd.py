"""Trains the miniature of Stable Video Diffusion on the moving world, and writes the file that users load.

The network is the pack's own `unet.UNetModel` in SVD's layout (Blattmann et al. 2023, arXiv 2311.15127): 8 input channels
(noisy latent and the first frame's), layers over time, the vector condition fps-1 | motion_bucket_id | augmentation, and
continuous EDM v-prediction. It differs from SVD in size, in the world, in a zero context (as the pack's conditioning node
gives without an image encoder) and in a loss that weighs the surroundings of the sprite higher.

    python -m tools.miniature.vae          # first
    torchrun --nproc-per-node 2 -m tools.miniature.train_svd --threads 1 --bf16    # about 40 minutes on two CPU cores
"""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tools.miniature import vae, world
from tools.miniature.training import WEIGHTS, Run, arguments, write_weights
from unet import Hooks, UNetConfig, UNetModel
from unet.layers import timestep_embedding

CONFIG = UNetConfig(
    in_channels=8, out_channels=4, model_channels=64, channel_mult=(1, 1), num_res_blocks=(1, 1),
    depth_in=(0, 1), depth_out=(0, 0, 0, 0), depth_middle=1, context_dim=1024, linear_projection=True,
    self_attention=(True, True), temporal=True, adm_channels=768, head_channels=16,
)
SIGMA = (1.8, 1.8)  # mean and standard deviation of ln sigma in training
DROPPED = 0.12  # share of clips trained without the first frame, for classifier-free guidance
EMPHASIS = 8.0  # how much more the sprite's surroundings weigh in the loss
FLIGHT = 16  # frames of a flight, from which clips of 8 frames are cut
FIRST, MOST = 96, 1500  # flights at the start; one is added each fourth step until there are so many


class TimeConv(nn.Conv3d):
    """A convolution over 3 frames, as a 2-D one over (frames, pixels): the same values, several times as fast on a CPU."""

    def forward(self, x):
        out = F.conv2d(x.flatten(3), self.weight.squeeze(-1), self.bias, padding=(1, 0))
        return out.unflatten(3, x.shape[3:])


# The layers that the network is built of.
LAYERS = SimpleNamespace(
    Linear=nn.Linear, Conv2d=nn.Conv2d, Conv3d=TimeConv, GroupNorm=nn.GroupNorm, LayerNorm=nn.LayerNorm,
)


class ZeroContext(Hooks):
    """Skips the work of the cross-attention whose context is all zeros: keys and values are 0, so its bias is left."""

    def attn2(self, attn, x, context):
        return attn.to_out[0].bias.expand_as(x)


def new_model() -> UNetModel:
    """An untrained network that starts as SVD does (each residual branch at 0) and ignores the context."""
    model = UNetModel(CONFIG, operations=LAYERS)
    with torch.no_grad():
        model.input_blocks[0][0].weight[:, 4:] *= vae.SCALE  # c_concat is not scaled
        for name, parameter in model.named_parameters():
            if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight", "attn2.to_k.weight", "attn2.to_v.weight")):
                parameter.zero_()
            if ".attn2.to_" in name and not name.endswith("bias"):
                parameter.requires_grad_(False)
    return model


def inside(name: str) -> bool:
    """Is this a parameter of the network's inside, not of its first or last convolution?"""
    return not name.startswith(("input_blocks.0.", "out."))


def vector_condition(motion_bucket_id: torch.Tensor, fps: torch.Tensor) -> torch.Tensor:
    """y [n, 768] as the host makes it for SVD: the embeddings of fps-1, motion_bucket_id and augmentation 0."""
    parts = (fps - 1, motion_bucket_id, torch.zeros_like(fps))
    return torch.cat([timestep_embedding(part, 256) for part in parts], dim=-1)


class Flights:
    """Encoded flights to cut clips from: every stride through a flight is a clip at a speed of its own."""

    def __init__(self, autoencoder: vae.TinyAutoencoder, seed: int, file: Path):
        self.autoencoder, self.seed, self.file = autoencoder, seed, file
        self.latents = torch.zeros(MOST, FLIGHT, 4, world.SIZE // 8, world.SIZE // 8)
        self.centres = np.zeros((MOST, FLIGHT, 2))
        self.paces = np.zeros(MOST)  # pixels a frame
        self.count = 0
        if file.exists():
            self._read()

    def save(self) -> None:
        """Stores what is encoded so far, for a run that is resumed."""
        n = self.count
        state = {"seed": self.seed, "latents": self.latents[:n].half(), "centres": torch.from_numpy(self.centres[:n])}
        torch.save({**state, "paces": torch.from_numpy(self.paces[:n])}, self.file.with_suffix(".part"))
        self.file.with_suffix(".part").replace(self.file)

    def _read(self):
        state = torch.load(self.file, weights_only=True)
        if state["seed"] != self.seed:
            raise ValueError(
                f"{self.file} is of seed {state['seed']}, this run is of {self.seed}: remove it or name another --work."
            )
        n = self.count = len(state["paces"])
        self.latents[:n] = state["latents"].float()
        self.centres[:n], self.paces[:n] = state["centres"].numpy(), state["paces"].numpy()

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Encodes flights until there are `count`."""
        while self.count < min(count, MOST):
            seed = (self.seed * 1_000_003 + self.count) % world.HELD_OUT
            clip = world.render(world.sample_world(seed), FLIGHT)
            pixels = torch.from_numpy(clip.frames).movedim(-1, 1).to(self.autoencoder.vae_scale.device)
            self.latents[self.count] = self.autoencoder.encode(pixels).cpu()
            self.centres[self.count] = clip.centres
            self.paces[self.count] = world.SPEED * clip.world.motion_bucket_id / clip.world.fps
            self.count += 1

    def batch(self, size: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """`size` clips: raw latents [b, t, 4, h, w], sprite centers [b, t, 2], motion_bucket_id and fps [b]."""
        latents, centres, buckets, rates = [], [], [], []
        for _ in range(size):
            flight = rng.integers(self.count)
            fastest = world.SPEED * world.BUCKETS[1] / world.FPS[0]
            stride = 2 if rng.uniform() < 0.4 and 2 * self.paces[flight] <= fastest else 1
            start = rng.integers(FLIGHT - stride * (world.FRAMES - 1))
            cut = slice(start, start + stride * (world.FRAMES - 1) + 1, stride)
            pace = stride * self.paces[flight]
            slowest = max(world.FPS[0], math.ceil(world.SPEED * world.BUCKETS[0] / pace - 1e-6))
            fps = rng.integers(slowest, min(world.FPS[1], int(world.SPEED * world.BUCKETS[1] / pace + 1e-6)) + 1)
            latents.append(self.latents[flight, cut])
            centres.append(self.centres[flight, cut])
            buckets.append(round(pace * fps / world.SPEED))
            rates.append(fps)
        return {
            "latents": torch.stack(latents), "centres": torch.from_numpy(np.stack(centres)).float(),
            "buckets": torch.tensor(buckets), "fps": torch.tensor(rates),
        }


def emphasis(centres: torch.Tensor, cells: int) -> torch.Tensor:
    """Weights [b*t, 1, cells, cells] of the loss: higher around the sprite, 1 on average."""
    place = torch.arange(cells, device=centres.device) * 8 + 3.5
    x, y = centres.flatten(0, 1).T
    squared = (place[None, None, :] - x[:, None, None]) ** 2 + (place[None, :, None] - y[:, None, None]) ** 2
    weights = 1 + EMPHASIS * torch.exp(-squared / (2 * 11**2))
    return (weights / weights.mean())[:, None]


def loss_of(model: UNetModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The v-prediction loss of EDM with sigma_data 1 (Karras et al. 2022, table 1; sgm's VScalingWithEDMcNoise).

    In terms of the network's own output its weighting (sigma^2 + 1) / sigma^2 comes to 1.
    """
    clips, frames = batch["latents"].shape[:2]
    device = batch["latents"].device

    def rows(value):
        return value.repeat_interleave(frames, dim=0)

    clean = batch["latents"].flatten(0, 1) * vae.SCALE
    first = batch["latents"][:, 0] * (torch.rand(clips, 1, 1, 1, device=device) >= DROPPED)
    sigma = rows(torch.exp(SIGMA[0] + SIGMA[1] * torch.randn(clips, device=device)).clamp(0.002, 700))
    s = sigma[:, None, None, None]
    noisy = clean + s * torch.randn_like(clean)
    target = (clean - noisy / (s**2 + 1)) / (-s / (s**2 + 1).sqrt())
    out = model(
        noisy / (s**2 + 1).sqrt(), 0.25 * sigma.log(), context=torch.zeros(1, 1, CONFIG.context_dim, device=device),
        y=rows(vector_condition(batch["buckets"], batch["fps"])), c_concat=rows(first), num_frames=frames,
        hooks=ZeroContext(),
    )
    return (emphasis(batch["centres"], clean.shape[-1]) * (out.float() - target).square()).mean()


def validate(model: UNetModel, batch: dict[str, torch.Tensor]) -> float:
    """The loss on held-out clips under fixed noise."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        return loss_of(model, batch).item()


def write(run: Run, autoencoder: vae.TinyAutoencoder, loss: float) -> None:
    """The UNet's averaged weights and the autoencoder as one fp16 file in the layout of an SVD checkpoint."""
    tensors = {f"model.diffusion_model.{key}": store(key, value) for key, value in run.mean.items()}
    for key, value in vae.full_layout(autoencoder.state_dict()).items():
        tensors[f"first_stage_model.{key}"] = store(key, value)
    write_weights(run.args.weights / "miniature_svd.safetensors", tensors, {
        "title": "Temporal UNet miniature SVD",
        "description": "Image to video for the synthetic moving world of tools/miniature/world.py, 128x128, 8 frames.",
        "training": f"tools/miniature/vae.py, then tools/miniature/train_svd.py, seed {run.args.seed}, {run.step} steps of "
                    f"{run.args.batch * run.workers} clips, {run.seconds:.0f} s on {run.args.device}, held-out loss {loss:.4f}",
        "commit": run.commit,
        "license": "Apache-2.0",
        "temporal_unet.head_channels": str(CONFIG.head_channels),
        "temporal_unet.num_frames": str(world.FRAMES),
    })


def store(key: str, value: torch.Tensor) -> torch.Tensor:
    keep = key.endswith("mix_factor") or key in ("vae_scale", "vae_shift")
    return value.detach().cpu().clone().to(torch.float32 if keep else torch.float16)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], steps=7000, batch=2, rate=1.5e-3)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where miniature_svd.safetensors goes")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    autoencoder = vae.load(args.work, args.device)
    model = new_model().to(args.device)
    run = Run("svd", model, args, matrices=inside)
    flights = Flights(autoencoder, args.seed * run.workers + run.rank, args.work / f"flights_{run.rank}.pt")
    averaged = UNetModel(CONFIG, operations=LAYERS).to(args.device)

    def to_device(batch):
        return {key: value.to(args.device) for key, value in batch.items()}

    checks = to_device(held_out_batch(autoencoder)) if run.rank == 0 else None
    while run.progress < 1:
        rng = run.seed_step()
        with run.precision():
            flights.grow(FIRST + run.step // 4)
            loss = loss_of(model, to_device(flights.batch(args.batch, rng)))
        run.update(loss)
        if run.step % 50 == 0:
            run.log()
        if run.step % 100 == 0 or run.progress >= 1:
            flights.save()
            run.save()
        if (run.step % 200 == 0 or run.progress >= 1) and run.rank == 0:
            averaged.load_state_dict(run.mean)
            held_out = validate(averaged, checks)
            run.log(held_out=held_out)
            write(run, autoencoder, held_out)


def held_out_batch(autoencoder: vae.TinyAutoencoder, clips: int = 16) -> dict[str, torch.Tensor]:
    """Clips of worlds that training never sees."""
    worlds = [world.sample_world(world.HELD_OUT + 1000 + i) for i in range(clips)]
    rendered = [world.render(w) for w in worlds]
    with torch.no_grad():
        pixels = torch.from_numpy(np.concatenate([clip.frames for clip in rendered])).movedim(-1, 1)
        latents = autoencoder.encode(pixels.to(autoencoder.vae_scale.device)).unflatten(0, (clips, world.FRAMES))
    return {
        "latents": latents, "centres": torch.from_numpy(np.stack([clip.centres for clip in rendered])).float(),
        "buckets": torch.tensor([w.motion_bucket_id for w in worlds]), "fps": torch.tensor([w.fps for w in worlds]),
    }


if __name__ == "__main__":
    main()
