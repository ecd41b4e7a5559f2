"""Video Options: what the sampler does with long clips, and in which steps it guides."""

import logging
from dataclasses import asdict, dataclass

from ..inputs.ranges import finite, in_order
from ..node_names import SVD_SAMPLER, VIDEO_OPTIONS

LIMITS: dict[str, tuple[float, float]] = {
    "window_frames": (0, 4096), "window_overlap": (0, 4096), "guidance_start": (0.0, 1.0), "guidance_end": (0.0, 1.0),
}

THIS_STEP, PREVIOUS_STEP = HAND_OVERS = "this step", "previous step"


@dataclass(frozen=True)
class VideoOptions:
    """The inputs of Video Options and their defaults.

    Frames of a window (0: as many as the model was trained on) and of the overlap of two; does the clip loop, and does each
    window start in the image's colors; the share of the steps, 0 to 1, after which guidance starts and ends; one of HAND_OVERS, the
    step in which a window's image was made.
    """

    window_frames: int = 0
    window_overlap: int = 6
    closed_loop: bool = False
    keep_colors: bool = True
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    hand_over: str = THIS_STEP

    def check_guidance(self, node: str) -> None:
        """Raises ValueError, which names `node` and input, where guidance has no share of the steps to act in."""
        finite(node, guidance_start=self.guidance_start, guidance_end=self.guidance_end)
        in_order(node, guidance_start=self.guidance_start, guidance_end=self.guidance_end)

    def check(self, node: str) -> None:
        """Raises ValueError, which names `node` and input, where a value is out of its range or contradicts another."""
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            finite(node, **{name: value})
            if not least <= value <= most:
                raise ValueError(f"{node}: {name} is {value:g}, expected {least:g} to {most:g}.")
        self.check_guidance(node)
        if self.hand_over not in HAND_OVERS:
            raise ValueError(f"{node}: hand_over is {self.hand_over!r}, expected one of {', '.join(HAND_OVERS)}.")
        if self.window_frames:
            check_overlap(node, self.window_frames, self.window_overlap)


DEFAULTS = VideoOptions()


def check_overlap(node: str, window_frames: int, window_overlap: int) -> None:
    """Raises ValueError, which names `node` and input, where no frame of a window is new."""
    if window_overlap >= window_frames:
        raise ValueError(
            f"{node}: window_overlap {window_overlap} leaves nothing of windows of {window_frames} frames; expected "
            f"less than {window_frames}."
        )


def decide(connected: VideoOptions | None, own: VideoOptions) -> tuple[VideoOptions, str]:
    """The options that act, and the name of the node that they are set in.

    Those of a Video Options node, if one is connected, else the sampler's `own` inputs of the same names, which it had before
    that node. The log says which of these are left out. Raises ValueError where `connected` is of another kind.
    """
    if connected is None:
        return own, SVD_SAMPLER
    if not isinstance(connected, VideoOptions):
        raise ValueError(f"{SVD_SAMPLER}: options is no set of options. Connect {VIDEO_OPTIONS}, or set the sampler's own inputs.")
    default, chosen = asdict(DEFAULTS), asdict(connected)
    left_out = {name: value for name, value in asdict(own).items() if value not in (default[name], chosen[name])}
    if left_out:
        values = ", ".join(f"{name} {value} ({chosen[name]} there)" for name, value in left_out.items())
        logging.warning(
            "%s: the connected %s decides; inputs of the sampler itself are left out: %s.", SVD_SAMPLER, VIDEO_OPTIONS, values
        )
    return connected, VIDEO_OPTIONS
