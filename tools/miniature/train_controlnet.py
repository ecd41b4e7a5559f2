"""Trains the miniature's ControlNet, which leads the sprite along a drawn path, and writes the file that users load.

The network is the pack's own `unet.SVDControlNet` in the layout of the public SVD ControlNets (CiaraRowles' depth and
lineart). Control images are a white disc on black where the sprite should be, one a frame. The UNet stays as it is; the
ControlNet starts as a copy of its down path, with residuals of 0. To keep the file small it has no attention.

    torchrun --nproc-per-node 2 -m tools.miniature.train_controlnet --threads 1 --bf16    # then, about 12 minutes
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tools.miniature import train_svd, vae, world
from tools.miniature.training import WEIGHTS, Run, arguments, write_weights
from unet import ControlNetConfig, SVDControlNet, UNetModel, load_unet
from unet.weights.diffusers_names import to_ldm

CONFIG = ControlNetConfig(
    encoder=replace(
        train_svd.CONFIG, out_channels=0, depth_in=(0, 0), depth_out=(), depth_middle=0, context_dim=None,
        linear_projection=False,
    ),
    hint_channels=3,
    hint_widths=(8, 16, 24, 32),
)
FIRST, MOST = 128, 1200  # steered clips at the start; one is added every third step until there are so many


def new_model(unet: UNetModel) -> SVDControlNet:
    """A ControlNet that starts as the UNet's down path and adds nothing."""
    model = SVDControlNet(CONFIG, operations=train_svd.LAYERS)
    known = unet.state_dict()
    state = {name: known[name] for name in model.state_dict() if name in known}
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        for part in (*model.controlnet_down_blocks, model.controlnet_mid_block, model.controlnet_cond_embedding.conv_out):
            part.weight.zero_()
            part.bias.zero_()
    return model


class SteeredClips:
    """Encoded clips whose sprites follow drawn paths."""

    def __init__(self, autoencoder: vae.TinyAutoencoder, first_seed: int):
        self.autoencoder, self.first_seed = autoencoder, first_seed
        self.clips: list[dict[str, torch.Tensor]] = []

    def grow(self, count: int) -> None:
        while len(self.clips) < min(count, MOST):
            self.clips.append(self.make(self.first_seed + len(self.clips)))

    @torch.no_grad()
    def make(self, seed: int) -> dict[str, torch.Tensor]:
        of = world.sample_world(seed)
        clip = world.render(of, path=world.drawn_path(of, seed))
        pixels = torch.from_numpy(clip.frames).movedim(-1, 1).to(self.autoencoder.vae_scale.device)
        return {
            "latents": self.autoencoder.encode(pixels).cpu(), "centres": torch.from_numpy(clip.centres).float(),
            "hint": torch.from_numpy(world.position_map(clip.centres)).movedim(-1, 1).mul(2).sub(1),
            "buckets": torch.tensor(of.motion_bucket_id), "fps": torch.tensor(of.fps),
        }

    def batch(self, size: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return stack([self.clips[rng.integers(len(self.clips))] for _ in range(size)])


def stack(clips: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}


def steered(unet: UNetModel, net: SVDControlNet, hint: torch.Tensor):
    """The UNet with the ControlNet's residuals for the control images [b*t, 3, h, w], to be called as the UNet alone."""

    def call(x, timesteps, context, y, c_concat, num_frames, hooks):
        residuals = net(x, net.embed_hint(hint), timesteps, None, y, c_concat, num_frames)
        return unet(x, timesteps, context, y, c_concat, num_frames, residuals, hooks=hooks)

    return call


def validate(unet: UNetModel, net: SVDControlNet, batch: dict[str, torch.Tensor]) -> float:
    """The loss on held-out clips under fixed noise."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        return train_svd.loss_of(steered(unet, net, batch["hint"].flatten(0, 1)), batch).item()


def public_name(name: str) -> str:
    """The name of one of `SVDControlNet`'s tensors in a public file."""
    layer, _, parameter = name.rpartition(".")
    if name.startswith("controlnet_"):
        return name
    if layer in OUTSIDE:
        return f"{OUTSIDE[layer]}.{parameter}"
    block, rest = name.split(".", 2)[:2], name.split(".", 2)[2]
    if block[0] == "middle_block":
        return f"mid_block.resnets.0.{_res(rest)}"
    place, rest = PLACES[int(block[1])], rest.removeprefix("0.")
    return f"{place}.conv.{parameter}" if rest.startswith("op.") else f"{place}.{_res(rest)}"


OUTSIDE = {
    "input_blocks.0.0": "conv_in", "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
}
PLACES = {1: "down_blocks.0.resnets.0", 2: "down_blocks.0.downsamplers.0", 3: "down_blocks.1.resnets.0"}
RES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}


def _res(name: str) -> str:
    if name.startswith("time_mixer."):
        return name
    side = "temporal_res_block" if name.startswith("time_stack.") else "spatial_res_block"
    layer, _, parameter = name.removeprefix("time_stack.").rpartition(".")
    return f"{side}.{RES[layer]}.{parameter}"


def write(run: Run, loss: float) -> None:
    """The averaged weights as an fp16 file in the public layout."""
    tensors = {public_name(name): train_svd.store(name, value) for name, value in run.mean.items()}
    assert set(to_ldm(tensors)) == set(run.mean)
    write_weights(run.args.weights / "miniature_svd_controlnet_path.safetensors", tensors, {
        "title": "Temporal UNet miniature SVD ControlNet, path",
        "description": "Leads the sprite of tools/miniature/world.py along a path: control images are a white disc of 7 "
                       "pixels' radius on black where the sprite's centre shall be, one a frame.",
        "training": f"tools/miniature/train_controlnet.py, seed {run.args.seed}, {run.step} steps of "
                    f"{run.args.batch * run.workers} clips, {run.seconds:.0f} s on {run.args.device}, held-out loss {loss:.4f}",
        "commit": run.commit,
        "license": "Apache-2.0",
        "temporal_unet.head_channels": str(CONFIG.encoder.head_channels),
    })


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], steps=1800, batch=2, rate=1.5e-3)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of miniature_svd.safetensors; the result goes there")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    autoencoder = vae.load(args.work, args.device)
    weights = args.weights / "miniature_svd.safetensors"
    unet = load_unet(weights, operations=train_svd.LAYERS, dtype=torch.float32, device=args.device)
    model = new_model(unet).to(args.device)
    run = Run("controlnet", model, args, average=0.998, matrices=inside)
    clips = SteeredClips(autoencoder, (args.seed * 64 + run.rank) * MOST)
    checks = stack([clips.make(world.HELD_OUT + 2000 + i) for i in range(16)]) if run.rank == 0 else None
    averaged = SVDControlNet(CONFIG, operations=train_svd.LAYERS).to(args.device)

    def to_device(batch):
        return {key: value.to(args.device) for key, value in batch.items()}

    while run.progress < 1:
        rng = run.seed_step()
        clips.grow(FIRST + run.step // 3)
        batch = to_device(clips.batch(args.batch, rng))
        with run.precision():
            loss = train_svd.loss_of(steered(unet, model, batch["hint"].flatten(0, 1)), batch)
        run.update(loss)
        if run.step % 50 == 0:
            run.log()
        if run.step % 200 == 0 or run.progress >= 1:
            run.save()
            if run.rank == 0:
                averaged.load_state_dict(run.mean)
                held_out = validate(unet, averaged, to_device(checks))
                run.log(held_out=held_out)
                write(run, held_out)


def inside(name: str) -> bool:
    """Is this a parameter of the copied down path, which Muon steps, not of the layers that are new or at the edge?"""
    return train_svd.inside(name) and not name.startswith("controlnet_")


if __name__ == "__main__":
    main()
