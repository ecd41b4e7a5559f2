"""Which UNet is in a file? Detected from the names and shapes of its tensors alone."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ..config import FAMILIES, Family, UNetConfig
from .diffusers_folder import with_heads
from .diffusers_names import to_ldm
from .errors import UNetFileError, shorten
from .kinds import find_layout, not_a_unet

HEAD_CHANNELS = "temporal_unet.head_channels"  # file metadata: head width of a miniature, which no shape shows

Shapes = Mapping[str, tuple[int, ...]]
MOST_BLOCKS = 500  # residual and transformer blocks of one network; SDXL, the deepest of the family, has fewer than 100


def detect(
    shapes: Shapes, metadata: Mapping[str, str] | None = None, weights: Path | None = None
) -> tuple[UNetConfig, Family, dict[str, str]]:
    """The network's config, its row in the table of families, and the name in the file of each of its key names.

    `shapes` maps every tensor's name to its shape; `metadata` is the file's, `weights` its path, next to which diffusers keeps
    what no shape shows. Raises UNetFileError where the file holds none of the family, or one that is too damaged to be detected.
    """
    names = find_names(shapes)
    unet = {name: tuple(shapes[on_disk]) for name, on_disk in names.items()}
    config = read_config(unet)
    family = find_family(config, shapes.keys())
    config = replace(config, num_heads=family.num_heads, head_channels=None if family.num_heads else 64)
    if weights is not None:
        config = with_heads(config, weights)
    return own_head_width(config, metadata), family, names


def find_names(names: Collection[str]) -> dict[str, str]:
    """Maps the key names of the UNet among these, as our network has them, to those on disk; raises UNetFileError where none is."""
    layout = find_layout(names)
    if layout is None:
        some = f" such as {', '.join(map(shorten, list(names)[:3]))}" if names else ""
        raise UNetFileError(not_a_unet(names) or (
            f"it holds no UNet of this family (found {len(names)} tensors{some}; expected input_blocks.* and output_blocks.*, or "
            f"down_blocks.* and up_blocks.*). Supported: {supported()}."
        ))
    begin = len(layout.prefix)
    bare = [name[begin:] for name in names if name.startswith(layout.prefix)]
    mapped = to_ldm(bare) if layout.diffusers else canonical_names(bare)
    return {name: layout.prefix + on_disk for name, on_disk in mapped.items()}


NUMBERED = r"(input_blocks|output_blocks)\.(\d{1,6})\.(\d{1,6})\."


def canonical_names(names: Collection[str]) -> dict[str, str]:
    """Maps key names with contiguous block indices to those on disk, which have gaps in the tiny models (1, 3, 4, 6, 7).

    There an upsampling has an index of its own; it becomes the last layer of the block before, as everywhere else.
    """
    layers: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if found := re.match(NUMBERED, name):
            layers.setdefault((found[1], int(found[2])), set()).add(int(found[3]))
    if all(0 in block for block in layers.values()):
        return {name: name for name in names}
    places = _contiguous(layers)
    return {_renumber(name, places): name for name in names}


def _contiguous(layers):
    """Maps (kind, index on disk) to (contiguous index, layer index of an upsampling that stands alone, else None)."""
    places = {}
    for kind in ("input_blocks", "output_blocks"):
        count, last = 0, 0
        for block in sorted(index for k, index in layers if k == kind):
            alone = 0 not in layers[kind, block]
            places[kind, block] = (count - 1, last + 1) if alone else (count, None)
            last = max(layers[kind, block])
            count += not alone
    return places


def _renumber(name, places):
    found = re.match(NUMBERED, name)
    if not found:
        return name
    index, alone = places[found[1], int(found[2])]
    return f"{found[1]}.{index}.{found[3] if alone is None else alone}.{name[found.end():]}"


def read_config(shapes: Shapes) -> UNetConfig:
    """The config of the UNet whose own key names and shapes these are; heads are left at their default."""
    encoder = read_encoder(shapes)
    depths = _depths(shapes)
    blocks = sum(encoder.num_res_blocks) + len(encoder.num_res_blocks)
    return _checked(replace(
        encoder,
        out_channels=matrix_shape(shapes, "out.2.weight")[0],
        depth_out=tuple(depths[f"output_blocks.{i}.1"] for i in range(blocks)),
    ))


def read_encoder(shapes: Shapes) -> UNetConfig:
    """The config of the down path and middle block alone, as a ControlNet has them; out_channels is 0, depth_out empty."""
    model_channels, in_channels = matrix_shape(shapes, "input_blocks.0.0.weight")[:2]
    depths = _depths(shapes)
    mults, res_blocks, depth_in, self_attention = _read_levels(shapes, model_channels, depths)
    attn2 = next((n for n in shapes if n.endswith("transformer_blocks.0.attn2.to_k.weight")), None)
    proj_in = next((n for n in shapes if n.endswith(".proj_in.weight")), None)
    context_dim = matrix_shape(shapes, attn2)[1] if attn2 else None
    if _has(shapes, "middle_block.") and not _has(shapes, "middle_block.0."):
        raise UNetFileError("middle_block.0 is missing: the file is damaged or not a whole UNet.")
    return _checked(UNetConfig(
        in_channels=in_channels,
        out_channels=0,
        model_channels=model_channels,
        channel_mult=mults,
        num_res_blocks=res_blocks,
        depth_in=depth_in,
        depth_out=(),
        depth_middle=depths["middle_block.1"] if _has(shapes, "middle_block.0.") else None,
        context_dim=context_dim,
        linear_projection=proj_in is not None and _is_linear(shapes, proj_in, context_dim),
        self_attention=self_attention,
        temporal=any(".time_stack." in name for name in shapes),
        adm_channels=matrix_shape(shapes, "label_emb.0.0.weight")[1] if "label_emb.0.0.weight" in shapes else None,
        num_classes=matrix_shape(shapes, "label_emb.weight")[0] if "label_emb.weight" in shapes else None,
    ))


def _is_linear(shapes: Shapes, proj_in: str, context_dim: int | None) -> bool:
    """Is this a linear layer, or a 1x1 convolution? Either is stored as the other by some tools; SD 1 alone has convolutions."""
    if context_dim == 768:
        return False
    return len(shapes[proj_in]) == 2 or context_dim in (1024, 2048) or "label_emb.0.0.weight" in shapes


def _checked(config: UNetConfig) -> UNetConfig:
    """The config; raises where it has more blocks than any of the family, since a network is built of it to compare with."""
    blocks = sum((*config.num_res_blocks, *config.depth_in, *config.depth_out, config.depth_middle or 0))
    if blocks > MOST_BLOCKS:
        raise UNetFileError(f"it has {blocks:,} blocks, expected {MOST_BLOCKS} at most: the file is damaged or no such UNet.")
    return config


def own_head_width(config: UNetConfig, metadata: Mapping[str, str] | None) -> UNetConfig:
    """The config with the head width that the file's metadata gives, where it gives one; raises where it does not fit."""
    if metadata and HEAD_CHANNELS in metadata:
        config = replace(config, num_heads=None, head_channels=_head_channels(metadata[HEAD_CHANNELS]))
    _check_heads(config)
    return config


def check_head_count(count: int, family: Family) -> None:
    """Raises UNetFileError where a network of this family with so many heads in all levels is not detected by one file alone."""
    if count != family.num_heads:
        usual = family.num_heads or "heads of one width"
        raise UNetFileError(
            f"it has {count} attention heads in all levels, where {family.title} has {usual}. Only a config.json next to a file "
            f"says so: keep it in its folder."
        )


def _read_levels(shapes, model_channels, depths):
    """(channel_mult, num_res_blocks, depth_in, self_attention), walking the input blocks from the first."""
    blocks = {found[1] for name in shapes if (found := re.match(r"input_blocks\.(\d+)\.", name))}
    downsampling = {found[1] for name in shapes if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.", name))}
    mults, res_blocks, depth_in, self_attention = [], [], [], []
    in_level = 0
    index = 1
    while str(index) in blocks:
        block = f"input_blocks.{index}."
        if str(index) in downsampling:
            in_level = 0
        else:
            in_level += 1
            if in_level == 1:
                mults.append(matrix_shape(shapes, block + "0.out_layers.3.weight")[0] // model_channels)
                res_blocks.append(0)
                self_attention.append(True)
            res_blocks[-1] += 1
            depth_in.append(depths[block + "1"])
            if depth_in[-1]:
                to_q = matrix_shape(shapes, block + "1.transformer_blocks.0.attn1.to_q.weight")
                to_k = matrix_shape(shapes, block + "1.transformer_blocks.0.attn1.to_k.weight")
                self_attention[-1] = to_k[1] == to_q[1]
        index += 1
    if not mults or str(index + 1) in blocks:
        raise UNetFileError(f"input_blocks.{index} is missing: the file is damaged or not a whole UNet.")
    return tuple(mults), tuple(res_blocks), tuple(depth_in), tuple(self_attention)


def find_family(config: UNetConfig, names: Collection[str] = ()) -> Family:
    """The row of the table that this network belongs to; `names` are all the file's, for markers next to the UNet."""
    for family in FAMILIES:
        fits = all(getattr(config, key) == value for key, value in family.match.items())
        if fits and (family.marker is None or family.marker in names):
            return family
    raise UNetFileError(
        f"its UNet (in {config.in_channels}, out {config.out_channels}, context {config.context_dim}, vector condition "
        f"{config.adm_channels}, {'with' if config.temporal else 'no'} temporal layers) is of no known member of the "
        f"family. Supported: {supported()}."
    )


def supported() -> str:
    return ", ".join(family.title for family in FAMILIES)


def _head_channels(text):
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise UNetFileError(f"its metadata {HEAD_CHANNELS} is '{shorten(text)}', expected a whole number from 1 up.")
    return int(text)


def _check_heads(config):
    for block in config.input_layout():
        heads, dim_head = config.heads(block.channels)
        attends = block.residual is not None and config.depth_in[block.residual] > 0
        if attends and heads * dim_head != block.channels:
            raise UNetFileError(
                f"level {block.level} is {block.channels} channels wide, which heads of width {dim_head} do not divide. A "
                f"miniature names its own head width in the file's metadata as {HEAD_CHANNELS}."
            )


def _has(shapes, prefix):
    return any(name.startswith(prefix) for name in shapes)


def matrix_shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    """The shape of a tensor of at least two dimensions; raises UNetFileError where it is missing or has another."""
    if name not in shapes:
        raise UNetFileError(f"the tensor {name} is missing: the file is damaged or not a whole UNet.")
    if len(shapes[name]) < 2 or 0 in shapes[name]:
        raise UNetFileError(
            f"the tensor {name} has shape {shorten(list(shapes[name]))}, expected a matrix: the file is damaged."
        )
    return shapes[name]


def _depths(shapes) -> Mapping[str, int]:
    """The number of transformer blocks in each layer, such as `input_blocks.4.1`; 0 in one that has none."""
    indices: dict[str, set[str]] = defaultdict(set)
    for name in shapes:
        if found := re.match(r"((?:input_blocks\.\d+|output_blocks\.\d+|middle_block)\.1)\.transformer_blocks\.(\d+)\.", name):
            indices[found[1]].add(found[2])
    depths = defaultdict(int)
    for layer, present in indices.items():
        depths[layer] = len(present)
        missing = next((index for index in range(len(present)) if str(index) not in present), None)
        if missing is not None:
            raise UNetFileError(f"{layer}.transformer_blocks.{missing} is missing: the file is damaged or not a whole UNet.")
    return depths
