"""The ControlNet of Stable Video Diffusion, with or without layers over time, and reading one out of a file.

Source: CiaraRowles' svd-temporal-controlnet (diffusers' class ControlNetSDVModel), after Zhang et al. 2023 (arXiv 2302.05543);
files are in the layout of hers.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .config import UNetConfig
from .weights.detect import HEAD_CHANNELS, matrix_shape, own_head_width, read_encoder
from .encoder import Builder, Encoder
from .weights.errors import UNetFileError, shorten
from .hooks import Hooks
from .weights.on_disk import open_regular
from .transformer import SpatialVideoTransformer

Shapes = Mapping[str, tuple[int, ...]]
MOST_WIDTHS = 20  # of the hint net; each but the first halves the image
MOST_CONFIG = 2**20  # bytes of `config.json`; diffusers' own has 1,500


@dataclass(frozen=True)
class ControlNetConfig:
    """The shape of one ControlNet: the way down that it shares with its UNet, and the net that reads the control image."""

    encoder: UNetConfig
    hint_channels: int  # of the control image
    hint_widths: tuple[int, ...]  # of the hint net at full size, a half, a quarter, …

    @property
    def temporal(self) -> bool:
        return self.encoder.temporal


class HintNet(nn.Module):
    """A control image [n, hint_channels, 8h, 8w] to what is added after the first convolution [n, channels, h, w]."""

    def __init__(self, hint_channels: int, widths: tuple[int, ...], channels: int, *, operations, factory: dict):
        super().__init__()

        def conv(n_in, n_out, stride=1):
            return operations.Conv2d(n_in, n_out, 3, padding=1, stride=stride, **factory)

        self.conv_in = conv(hint_channels, widths[0])
        self.blocks = nn.ModuleList()
        for narrow, wide in zip(widths, widths[1:]):
            self.blocks += [conv(narrow, narrow), conv(narrow, wide, stride=2)]
        self.conv_out = conv(widths[-1], channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.conv_in(image))
        for block in self.blocks:
            h = F.silu(block(h))
        return self.conv_out(h)


class SVDControlNet(Encoder):
    """A copy of the UNet's way down that sees the control images and gives a residual for each skip and the middle."""

    def __init__(self, config: ControlNetConfig, *, operations=nn, dtype: torch.dtype | None = None, device=None):
        factory = {"dtype": dtype, "device": device}
        build = Builder(config.encoder, operations, factory)
        super().__init__(config.encoder, build, dtype)
        if config.temporal:
            _take_diffusers_eps(self.input_blocks)
        width = config.encoder.model_channels
        self.controlnet_cond_embedding = HintNet(
            config.hint_channels, config.hint_widths, width, operations=operations, factory=factory
        )
        self.controlnet_down_blocks = nn.ModuleList(
            operations.Conv2d(channels, channels, 1, **factory) for channels in build.skips
        )
        self.controlnet_mid_block = operations.Conv2d(build.channels, build.channels, 1, **factory)

    def embed_hint(self, image: torch.Tensor) -> torch.Tensor:
        """Control images [n, hint_channels, 8h, 8w] in -1 to 1 to [n, model_channels, h, w]; the same at every step."""
        return self.controlnet_cond_embedding(image)

    def forward(
        self,
        x: torch.Tensor,
        hint: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        c_concat: torch.Tensor | None = None,
        num_frames: int | None = None,
        *,
        hooks: Hooks | None = None,
        budget: int | None = None,
    ) -> list[torch.Tensor]:
        """The residuals in the order of `UNetModel.forward`'s `controls`: one for each input block, then the middle's.

        `hint` [b*t, model_channels, h, w] is `embed_hint` of the frames' control images; all else, `budget` too, as the UNet
        takes it. A net that takes the latent alone makes no use of `c_concat`.
        """
        hooks = hooks or Hooks()
        c_concat = None if x.shape[1] == self.config.in_channels else c_concat
        x, step = self.begin(x, timesteps, context, y, c_concat, num_frames, None, None, hooks, budget)
        h = x
        residuals = []
        for index, (block, zero_conv) in enumerate(zip(self.input_blocks, self.controlnet_down_blocks)):
            hooks.enter_block("input", index)
            for layer in block:
                h = hooks.layer(layer, h, step, None)
            h = h + hint if index == 0 else h
            residuals.append(zero_conv(h))
        hooks.enter_block("middle", 0)
        for layer in self.middle_block:
            h = hooks.layer(layer, h, step, None)
        return [*residuals, self.controlnet_mid_block(h)]


def _take_diffusers_eps(input_blocks: nn.ModuleList) -> None:
    """Before an attention on the way down diffusers' video blocks, in which these nets were trained, normalise with 1e-6."""
    for block in input_blocks:
        if isinstance(block[-1], SpatialVideoTransformer):
            for norm in block[0].modules():
                if isinstance(norm, nn.GroupNorm):
                    norm.eps = 1e-6


# diffusers' names inside a block, and those of the original, in the order in which they are tried.
INSIDE = (
    (r"spatial_res_block\.", ""), (r"temporal_res_block\.", "time_stack."),
    (r"norm1\.", "in_layers.0."), (r"conv1\.", "in_layers.2."), (r"time_emb_proj\.", "emb_layers.1."),
    (r"norm2\.", "out_layers.0."), (r"conv2\.", "out_layers.3."), (r"conv_shortcut\.", "skip_connection."),
)
ATTENTION = (
    (r"temporal_transformer_blocks\.", "time_stack."),
    (r"time_pos_embed\.linear_1\.", "time_pos_embed.0."), (r"time_pos_embed\.linear_2\.", "time_pos_embed.2."),
)
OUTSIDE = (
    (r"conv_in\.", "input_blocks.0.0."),
    (r"time_embedding\.linear_1\.", "time_embed.0."), (r"time_embedding\.linear_2\.", "time_embed.2."),
    (r"add_embedding\.linear_1\.", "label_emb.0.0."), (r"add_embedding\.linear_2\.", "label_emb.0.2."),
)


def is_svd_controlnet(shapes: Shapes) -> bool:
    """Do these tensors make an SVD ControlNet in the public layout?

    One without layers over time is told from those of image models by the image latent that it takes beside the noise, or by
    SVD's vector condition; what it attends to is as wide as SVD's.
    """
    if not any(name.startswith("controlnet_mid_block.") for name in shapes):
        return False
    if any(".temporal_res_block." in name for name in shapes):
        return True
    contexts = {shape[1:] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")}
    takes_image = shapes.get("conv_in.weight", ())[1:2] == (8,)
    takes_motion = shapes.get("add_embedding.linear_1.weight", ())[1:2] == (768,)
    return contexts <= {(1024,)} and (takes_image or takes_motion)


def original_names(names) -> dict[str, str]:
    """Maps the original's key names, which our networks have, to those of diffusers' layout."""
    places = _input_blocks(names)
    return {_original(name, places): name for name in names}


def _input_blocks(names) -> dict[str, range]:
    """The indices of the input blocks of each down block, by its index: a residual block is one, a downsampling too."""
    layers: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if found := re.match(r"down_blocks\.(\d+)\.(resnets\.[^.]*|downsamplers)?", name):
            layers[found[1]].add(found[2])
    places: dict[str, range] = {}
    start = 1
    while (level := str(len(places))) in layers:
        places[level] = range(start, start + len(layers[level] - {None}))
        start = places[level].stop
    return places


def _original(name: str, places: dict[str, range]) -> str:
    found = re.match(r"down_blocks\.(\d+)\.", name)
    if found and found[1] not in places:  # a level before it is missing: what lacks shows the damage
        return name
    if found := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d{1,6})\.(.*)", name):
        block = f"input_blocks.{places[found[1]].start + int(found[3])}"
        return f"{block}.0.{_res(found[4])}" if found[2] == "resnets" else f"{block}.1.{_rename(found[4], ATTENTION)}"
    if found := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{places[found[1]].stop - 1}.0.op.{found[2]}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d{1,6})\.(.*)", name):
        if found[1] == "attentions":
            return f"middle_block.1.{_rename(found[3], ATTENTION)}"
        return f"middle_block.{2 * int(found[2])}.{_res(found[3])}"
    return _rename(name, OUTSIDE)


def _res(name: str) -> str:
    """Both parts of a name such as `temporal_res_block.conv1.weight`."""
    for pattern, new in INSIDE:
        name = re.sub("^(time_stack\\.)?" + pattern, lambda found, new=new: (found[1] or "") + new, name)
    return name


def _rename(name: str, rules) -> str:
    for pattern, new in rules:
        name = re.sub("^" + pattern, new, name)
    return name


def read_controlnet_config(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> ControlNetConfig:
    """The config of the ControlNet whose original key names and shapes these are."""
    encoder = own_head_width(read_encoder(shapes), metadata)
    if encoder.depth_middle is None:
        raise UNetFileError("mid_block is missing: the file is damaged or not a whole ControlNet.")
    taps = len({name.split(".")[1] for name in shapes if name.startswith("controlnet_down_blocks.")})
    if taps != encoder.num_skips:
        raise UNetFileError(
            f"it has {taps} controlnet_down_blocks, but down_blocks for {encoder.num_skips}: the file is damaged or not a "
            f"whole ControlNet. Get it again from its source."
        )
    hint = "controlnet_cond_embedding."
    width, channels = matrix_shape(shapes, f"{hint}conv_in.weight")[:2]
    widths = [width]
    while (name := f"{hint}blocks.{2 * len(widths) - 1}.weight") in shapes:
        widths.append(matrix_shape(shapes, name)[0])
    if len(widths) > MOST_WIDTHS:
        raise UNetFileError(f"its hint net has {len(widths)} sizes, expected 4: the file is damaged or of another kind.")
    return ControlNetConfig(encoder, channels, tuple(widths))


def head_width_beside(path: Path) -> dict[str, str]:
    """As a file's metadata would say it, the width of attention heads that diffusers' `config.json` next to `path` gives.

    Empty where there is none, or one of another network. Raises UNetFileError where levels have heads of unlike widths.
    """
    try:
        with open_regular(path.with_name("config.json")) as file:
            config = json.loads(file.read(MOST_CONFIG))
    except (OSError, ValueError, RecursionError):  # none, or of something else
        return {}
    match config:
        case {"_class_name": str(kind), "num_attention_heads": int(count), "block_out_channels": [*widths]}:
            heads = [count] * len(widths)
        case {"_class_name": str(kind), "num_attention_heads": [*heads], "block_out_channels": [*widths]}:
            pass
        case _:
            return {}
    numbers = all(isinstance(number, int) and number > 0 for number in (*heads, *widths))
    if not kind.startswith("ControlNetSDV") or not widths or len(heads) != len(widths) or not numbers:
        return {}
    found = {width // count for width, count in zip(widths, heads)}
    if len(found) > 1:
        raise UNetFileError(
            f"config.json beside it counts {shorten(heads)} heads for channels {shorten(widths)}: heads of widths "
            f"{shorten(sorted(found))}, expected one width in all levels (64 in SVD's own). Such a net cannot be loaded here."
        )
    return {HEAD_CHANNELS: str(*found)}
