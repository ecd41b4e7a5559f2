"""ControlNeXt-SVD files as their authors publish them, and what their code computes, written out from it.

Source: dvlab-research/ControlNeXt, ControlNeXt-SVD-v2/models and ControlNeXt-SVD/models. Nothing here is imported from the pack.
"""

import math

import torch
import torch.nn.functional as F

LEVELS = {1: ((128, 128, 4), (128, 256, 8), (256, 256, 8)), 2: ((128, 128, 4), (128, 256, 8))}  # in, out, groups
OUT = {1: 1280, 2: 320}


def tensors(version: int, out: int | None = None, seed: int = 4) -> dict[str, torch.Tensor]:
    """Random tensors under the published names and shapes; `out`: the width of a smaller UNet where the feature joins it."""
    shapes = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    layer("time_embedding.linear_1", 256, 128)
    layer("time_embedding.linear_2", 256, 256)
    for place, (n_in, n_out) in {0: (3, 64), 3: (64, 64), 6: (64, 128)}.items():
        layer(f"embedding.{place}", n_out, n_in, 3, 3)
        layer(f"embedding.{place + 1}", n_out)
    for level, (n_in, n_out, _) in enumerate(LEVELS[version]):
        layer(f"down_res.{level}.norm1", n_in)
        layer(f"down_res.{level}.conv1", n_out, n_in, 3, 3)
        layer(f"down_res.{level}.time_emb_proj", n_out, 256)
        layer(f"down_res.{level}.norm2", n_out)
        layer(f"down_res.{level}.conv2", n_out, n_out, 3, 3)
        if n_in != n_out:
            layer(f"down_res.{level}.conv_shortcut", n_out, n_in, 1, 1)
        layer(f"down_sample.{level}.conv", n_out, n_out, 3, 3)
    for place in (0, 3):
        layer(f"mid_convs.0.{place}", 256, 256, 3, 3)
    for place in (2, 4):
        layer(f"mid_convs.0.{place}", 256)
    layer("mid_convs.1", out or OUT[version], 256, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            made[name] = value * torch.Size(shape[1:]).numel() ** -0.5
        else:
            made[name] = 0.1 * value + name.endswith("weight")
    return made if version == 2 else {**made, "scale": torch.tensor(0.8766)}


def feature(w: dict, image: torch.Tensor, t: float) -> torch.Tensor:
    """ControlNeXtSDVModel.forward for images [n, 3, h, w] in 0 to 1, in the dtype of `w`."""

    def conv(x, name, **more):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **more)

    def norm(x, name, groups, eps):
        split = x.reshape(x.shape[0], groups, -1)
        split = (split - split.mean(-1, keepdim=True)) / (split.var(-1, correction=0, keepdim=True) + eps).sqrt()
        return split.reshape(x.shape) * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def swish(x):
        return x / (1 + (-x).exp())

    version = 1 if "scale" in w else 2
    angles = [t * 10000 ** (-i / 64) for i in range(64)]
    emb = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=image.dtype)
    emb = linear(swish(linear(emb, "time_embedding.linear_1")), "time_embedding.linear_2")

    x = conv(image, "embedding.0", stride=2, padding=1)
    x = conv(norm(x, "embedding.1", 2, 1e-5).clamp(min=0), "embedding.3")
    x = conv(norm(x, "embedding.4", 2, 1e-5).clamp(min=0), "embedding.6")
    x = norm(x, "embedding.7", 2, 1e-5).clamp(min=0)
    if version == 1:
        x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
    for level, (n_in, n_out, groups) in enumerate(LEVELS[version]):
        name = f"down_res.{level}"
        h = conv(swish(norm(x, f"{name}.norm1", groups, 1e-6)), f"{name}.conv1", padding=1)
        h = h + linear(swish(emb), f"{name}.time_emb_proj")[:, None, None]
        h = conv(swish(norm(h, f"{name}.norm2", groups, 1e-6)), f"{name}.conv2", padding=1)
        x = h + (x if n_in == n_out else conv(x, f"{name}.conv_shortcut"))
        x = conv(x, f"down_sample.{level}.conv", stride=2, padding=1)
    h = norm(conv(x, "mid_convs.0.0", padding=1).clamp(min=0), "mid_convs.0.2", 8, 1e-5)
    x = x + norm(conv(h, "mid_convs.0.3", padding=1), "mid_convs.0.4", 8, 1e-5)
    return conv(x, "mid_convs.1")


def joined(h: torch.Tensor, control: torch.Tensor, gain) -> torch.Tensor:
    """The lines of the authors' UNet, sample by sample: h [n, c, h, w], control [n, c, h', w'], gain a number or [n, 1, h, w]."""
    out = []
    for sample, c, factor in zip(h, control, gain if torch.is_tensor(gain) else [gain] * len(h), strict=True):
        c = (c - c.sum() / c.numel()) * (_deviation(sample) / (_deviation(c) + 1e-5)) + sample.sum() / sample.numel()
        out.append(sample + _averaged(c, *sample.shape[-2:]) * factor)
    return torch.stack(out)


def _deviation(x):
    return (((x - x.mean()) ** 2).sum() / (x.numel() - 1)).sqrt()


def _averaged(x, height, width):
    """Adaptive average pooling: pixel i of n is the mean over floor(i size / n) … ceil((i + 1) size / n)."""
    def parts(size, count):
        return [slice(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]

    rows = [
        torch.stack([x[:, row, column].mean((-2, -1)) for column in parts(x.shape[-1], width)], -1)
        for row in parts(x.shape[-2], height)
    ]
    return torch.stack(rows, -2)
