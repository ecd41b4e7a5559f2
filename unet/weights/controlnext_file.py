"""Reading a ControlNeXt of Stable Video Diffusion out of a file as its authors publish it."""

from collections.abc import Collection, Mapping
from itertools import pairwise

from ..controlnext import EMBEDDING_GROUPS, LEVEL_GROUPS, LEVELS_V1, LEVELS_V2, MIDDLE_GROUPS, ControlNeXtConfig
from .errors import UNetFileError

Shapes = Mapping[str, tuple[int, ...]]

PARTS = ("embedding.", "down_res.", "down_sample.", "mid_convs.")


def is_controlnext(names: Collection[str]) -> bool:
    """Do these tensors make a ControlNeXt, though maybe a damaged one or one of an image model?"""
    return sum(any(name.startswith(part) for name in names) for part in PARTS) >= 2


def controlnext_names(names: Collection[str]) -> dict[str, str]:
    """Maps the key names of `ControlNeXt` to those on disk."""
    return {"strength.scale" if name == "scale" else name: name for name in names}


def read_controlnext_config(shapes: Shapes) -> ControlNeXtConfig:
    """The config of the net whose key names (as `ControlNeXt` has them) and shapes these are."""
    if not any(name.startswith("embedding.") for name in shapes):
        raise UNetFileError(
            "it holds a ControlNeXt without embedding.*: one of Stable Diffusion 1.5, or a damaged file. Choose a "
            "ControlNeXt-SVD file."
        )
    levels = len({name.split(".")[1] for name in shapes if name.startswith("down_res.")})
    learned_strength = "strength.scale" in shapes
    if levels != (LEVELS_V1 if learned_strength else LEVELS_V2):
        raise UNetFileError(
            f"its ControlNeXt has {levels} levels (down_res) and {'a' if learned_strength else 'no'} learned scale; expected "
            f"{LEVELS_V2} and none (ControlNeXt-SVD v2), or {LEVELS_V1} and one (v1). The file is damaged or of another kind."
        )

    def widths(name: str) -> tuple[int, ...]:
        """(output, input) channels of the layer."""
        if len(shapes.get(f"{name}.weight", ())) < 2:
            raise UNetFileError(
                f"{name}.weight is missing or no matrix: the file is damaged or not a whole ControlNeXt. Get it again from "
                f"its source."
            )
        return shapes[f"{name}.weight"][:2]

    emb_channels, time_channels = widths("time_embedding.linear_1")
    config = ControlNeXtConfig(
        image_channels=widths("embedding.0")[1],
        embedding_widths=(widths("embedding.0")[0], widths("embedding.3")[0], widths("embedding.6")[0]),
        level_widths=tuple(widths(f"down_res.{level}.conv1")[0] for level in range(levels)),
        out_channels=widths("mid_convs.1")[0],
        time_channels=time_channels,
        emb_channels=emb_channels,
        learned_strength=learned_strength,
    )
    for width, groups in _normed(config):
        if width % groups:
            raise UNetFileError(f"a layer is {width} channels wide, which {groups} groups do not divide: the file is damaged.")
    return config


def _normed(config: ControlNeXtConfig):
    """(channels, groups) of the norms."""
    yield from ((width, EMBEDDING_GROUPS) for width in config.embedding_widths)
    channels = (config.embedding_widths[-1], *config.level_widths)
    for groups, (before, after) in zip(LEVEL_GROUPS, pairwise(channels), strict=False):  # v2 has no third level
        yield from ((before, groups), (after, groups))
    yield channels[-1], MIDDLE_GROUPS
