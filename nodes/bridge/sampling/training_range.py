"""Warnings where a clip is far from what SVD was trained on."""

import logging

from ..model.trained_length import automatic_length
from ..node_names import SVD_SAMPLER

SVD_WIDTH = 320  # model channels of the real SVD; a miniature has fewer
TRAINED = 1024, 576  # pixels
SHORTEST = 7  # frames, half of what SVD was trained on
TOO_LONG = 1.5  # times the trained length


def warn_far_from_training(model, latent) -> None:
    """Logs a warning where the size, or the number of frames that the MODEL sees at once, is far from its training.

    latent [frames, 4, height / 8, width / 8].
    """
    if model.model.model_config.unet_config["model_channels"] != SVD_WIDTH:
        return
    frames, _, height, width = latent.shape
    share = height * width / (TRAINED[0] * TRAINED[1] / 64)
    if not 0.4 <= share <= 2:
        logging.warning(
            "%s: the video is %dx%d, SVD was trained on %dx%d: expect little or broken motion. Keep near that area, and "
            "scale the result.", SVD_SAMPLER, width * 8, height * 8, *TRAINED,
        )
    windows = model.model_options.get("context_handler")  # ours, or those of the host's own node
    at_once = frames if windows is None else min(frames, windows.context_length)
    if at_once < SHORTEST:
        logging.warning(
            "%s: %d frames at once are fewer than SVD was trained on (14 or 25): expect little motion. Make 14 and keep "
            "some, with window_frames 0.", SVD_SAMPLER, at_once,
        )
    trained = automatic_length(model, at_once)
    if at_once > TOO_LONG * trained:
        logging.warning(
            "%s: %d frames at once are more than the %d that the model was trained on: expect blurred or broken motion. Set "
            "window_frames to 0 (or the Context Windows node to that length), which works in windows.", SVD_SAMPLER, at_once,
            trained,
        )
