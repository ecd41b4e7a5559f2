"""The formulas of the UNet's layers, written out in fp64: the oracle of test_layers.py and test_transformer.py.

Nothing here is imported from `unet`. `w` maps the key names of one layer to its tensors, as on disk.
"""

import math

import torch
import torch.nn.functional as F


def fill(module, seed=0):
    """The module in fp64 with random weights, and those weights by name."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().requires_grad_(False)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * fan_in**-0.5)
    return module, {name: value.clone() for name, value in module.state_dict().items()}


def randn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def part(w, prefix):
    """The weights under `prefix`, without it."""
    return {name[len(prefix):]: value for name, value in w.items() if name.startswith(prefix)}


def sinusoids(t, dim, max_period=10000):
    """One row of the timestep embedding: dim/2 cosines, then dim/2 sines, of t / max_period^(i / (dim/2))."""
    angles = [t * max_period ** (-i / (dim // 2)) for i in range(dim // 2)]
    return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)


def silu(x):
    return x / (1 + torch.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def linear(x, w, prefix):
    out = torch.einsum("...i,oi->...o", x, w[prefix + ".weight"])
    return out + w[prefix + ".bias"] if prefix + ".bias" in w else out


def conv2d(x, w, prefix):
    weight = w[prefix + ".weight"]
    return F.conv2d(x, weight, w[prefix + ".bias"], padding=weight.shape[-1] // 2)


def conv_time(x, w, prefix):
    """A convolution over 3 frames of x [b, t, c, h, w], with frames of zeros before and after."""
    weight = w[prefix + ".weight"][..., 0, 0]  # [o, i, 3]
    zeros = torch.zeros_like(x[:, :1])
    before, after = torch.cat([zeros, x[:, :-1]], 1), torch.cat([x[:, 1:], zeros], 1)
    out = sum(torch.einsum("oi,btihw->btohw", weight[..., k], frame) for k, frame in enumerate((before, x, after)))
    return out + w[prefix + ".bias"][:, None, None]


def group_norm(x, w, prefix, eps, channel_dim=1):
    """32 groups of channels; mean and variance over the group and every dimension but the first."""
    moved = x.movedim(channel_dim, 1)
    groups = moved.reshape(len(x), 32, -1)
    mean = groups.mean(-1, keepdim=True)
    variance = ((groups - mean) ** 2).mean(-1, keepdim=True)
    moved = ((groups - mean) / (variance + eps).sqrt()).reshape(moved.shape)
    ones = [1] * (moved.ndim - 2)
    moved = moved * w[prefix + ".weight"].view(-1, *ones) + w[prefix + ".bias"].view(-1, *ones)
    return moved.movedim(1, channel_dim)


def layer_norm(x, w, prefix, eps=1e-5):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * w[prefix + ".weight"] + w[prefix + ".bias"]


def blend(w, spatial, temporal):
    s = 1 / (1 + torch.exp(-w["time_mixer.mix_factor"]))
    return s * spatial + (1 - s) * temporal


def res_block(x, emb, w):
    """x [n, c, h, w], emb [n, e]."""
    h = conv2d(silu(group_norm(x, w, "in_layers.0", 1e-5)), w, "in_layers.2")
    h = h + linear(silu(emb), w, "emb_layers.1")[:, :, None, None]
    h = conv2d(silu(group_norm(h, w, "out_layers.0", 1e-5)), w, "out_layers.3")
    return h + (conv2d(x, w, "skip_connection") if "skip_connection.weight" in w else x)


def video_res_block(x, emb, w, num_frames):
    """x [b*t, c, h, w], emb [b*t, e]."""
    spatial = res_block(x, emb, w)
    time = part(w, "time_stack.")
    video = spatial.reshape(-1, num_frames, *spatial.shape[1:])
    h = conv_time(silu(group_norm(video, time, "in_layers.0", 1e-5, channel_dim=2)), time, "in_layers.2")
    h = h + linear(silu(emb), time, "emb_layers.1").reshape(*video.shape[:3], 1, 1)
    h = conv_time(silu(group_norm(h, time, "out_layers.0", 1e-5, channel_dim=2)), time, "out_layers.3")
    return blend(w, spatial, (video + h).reshape(spatial.shape))


def attention(q, k, v, heads):
    q, k, v = (z.reshape(*z.shape[:2], heads, -1) for z in (q, k, v))
    weights = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
    weights = torch.exp(weights - weights.amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2)


def cross_attention(x, context, w, heads):
    out = attention(linear(x, w, "to_q"), linear(context, w, "to_k"), linear(context, w, "to_v"), heads)
    return linear(out, w, "to_out.0")


def feed_forward(x, w):
    value, gate = linear(x, w, "net.0.proj").chunk(2, -1)
    return linear(value * gelu(gate), w, "net.2")


def transformer_block(x, context, w, heads, self_attention=True):
    """x [n, tokens, c], context [n, keys, d]."""
    if "norm_in.weight" in w:
        x = x + feed_forward(layer_norm(x, w, "norm_in"), part(w, "ff_in."))
    h = layer_norm(x, w, "norm1")
    x = x + cross_attention(h, h if self_attention else context, part(w, "attn1."), heads)
    x = x + cross_attention(layer_norm(x, w, "norm2"), context, part(w, "attn2."), heads)
    return x + feed_forward(layer_norm(x, w, "norm3"), part(w, "ff."))


def _project(x, w, name):
    weight = w[name + ".weight"]
    return torch.einsum("nsi,oi->nso", x, weight.reshape(weight.shape[:2])) + w[name + ".bias"]


def spatial_transformer(x, context, w, heads, depth):
    """x [n, c, h, w], context [n, keys, d]."""
    tokens = group_norm(x, w, "norm", 1e-6).flatten(2).transpose(1, 2)
    tokens = _project(tokens, w, "proj_in")
    for k in range(depth):
        tokens = transformer_block(tokens, context, part(w, f"transformer_blocks.{k}."), heads)
    return _project(tokens, w, "proj_out").transpose(1, 2).reshape(x.shape) + x


def video_transformer(x, context, w, heads, depth, num_frames, time_context=None):
    """The spatial transformer for x [b*t, c, h, w], with a block over the frames of each pixel at every depth, pixel by pixel."""
    channels = x.shape[1]
    videos = len(x) // num_frames
    time_context = context if time_context is None else time_context
    positions = torch.stack([sinusoids(t, channels) for t in range(num_frames)])
    positions = linear(silu(linear(positions, w, "time_pos_embed.0")), w, "time_pos_embed.2")
    tokens = group_norm(x, w, "norm", 1e-6).flatten(2).transpose(1, 2)
    tokens = _project(tokens, w, "proj_in")
    for k in range(depth):
        tokens = transformer_block(tokens, context, part(w, f"transformer_blocks.{k}."), heads)
        temporal = torch.empty_like(tokens)
        for video in range(videos):
            rows = slice(video * num_frames, (video + 1) * num_frames)
            for pixel in range(tokens.shape[1]):
                frames = (tokens[rows, pixel] + positions)[None]
                first = time_context[video * num_frames][None]
                temporal[rows, pixel] = transformer_block(frames, first, part(w, f"time_stack.{k}."), heads)[0]
        tokens = blend(w, tokens, temporal)
    return _project(tokens, w, "proj_out").transpose(1, 2).reshape(x.shape) + x
