"""Reading the ControlNet of Stable Video Diffusion out of a file in the layout of diffusers' ControlNetSDVModel."""

from collections.abc import Mapping
from pathlib import Path

from ..controlnet import ControlNetConfig
from .detect import HEAD_CHANNELS, matrix_shape, own_head_width, read_encoder
from .diffusers_folder import read_json
from .errors import UNetFileError, shorten

Shapes = Mapping[str, tuple[int, ...]]
MOST_WIDTHS = 20  # of the hint net; each but the first halves the image


def is_svd_controlnet(shapes: Shapes) -> bool:
    """Do these tensors make an SVD ControlNet in the public layout?

    One without layers over time differs from those of image models in the image latent that it takes with the noise, or in
    SVD's vector condition; its context is as wide as SVD's.
    """
    if not any(name.startswith("controlnet_mid_block.") for name in shapes):
        return False
    if any(".temporal_res_block." in name for name in shapes):
        return True
    contexts = {shape[1:] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")}
    takes_image = shapes.get("conv_in.weight", ())[1:2] == (8,)
    takes_motion = shapes.get("add_embedding.linear_1.weight", ())[1:2] == (768,)
    return contexts <= {(1024,)} and (takes_image or takes_motion)


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


def head_width_next_to(path: Path) -> dict[str, str]:
    """As a file's metadata would say it, the width of attention heads that diffusers' `config.json` next to `path` gives.

    Empty where there is none, or one of another network. Raises UNetFileError where levels have heads of different widths.
    """
    match read_json(path.with_name("config.json")):
        case {"_class_name": str(kind), "num_attention_heads": int(count), "block_out_channels": [*widths]}:
            heads = [count] * len(widths)
        case {"_class_name": str(kind), "num_attention_heads": [*heads], "block_out_channels": [*widths]}:
            pass
        case _:
            return {}
    counts = all(isinstance(count, int) and count > 0 for count in (*heads, *widths))
    if not kind.startswith("ControlNetSDV") or not widths or len(heads) != len(widths) or not counts:
        return {}
    found = {width // count for width, count in zip(widths, heads, strict=True)}
    if 0 in found:  # more heads than channels: of something else
        return {}
    if len(found) > 1:
        raise UNetFileError(
            f"config.json next to it counts {shorten(heads)} heads for channels {shorten(widths)}: heads of widths "
            f"{shorten(sorted(found))}, expected one width in all levels (64 in SVD's own). Such a net cannot be loaded here."
        )
    return {HEAD_CHANNELS: str(*found)}
