"""A MODEL whose network keeps its inner features in each sampling run, and what is said of such a run."""

import inspect
import logging
from dataclasses import dataclass

import comfy.context_windows
import comfy.model_management as management
import comfy.model_patcher
import comfy.patcher_extension
from comfy_execution.utils import get_executing_context

from ....unet import UNetConfig, feature_bytes
from ..inputs.ranges import finite, in_order
from ..model.feature_run import KEY, FeatureRun
from ..model.host_unet import UNetModel
from ..node_names import FEATURE_CACHE as NODE
from ..node_names import LOAD_UNET
from .windows import ClipWindows

OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
PREPARE = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
# Newer hosts prepend a frame to windows that begin later; 0.16.3 does not.
HOST_ANCHORS = "causal_window_fix" in inspect.signature(comfy.context_windows.IndexListContextHandler).parameters


@dataclass(frozen=True)
class CacheSettings:
    """What the node sets; a threshold of 0 turns the cache off."""

    threshold: float
    depth: int
    start_percent: float
    end_percent: float

    def check(self) -> None:
        """Raises ValueError, which names the node, where a setting is no number or contradicts another."""
        finite(NODE, threshold=self.threshold, start_percent=self.start_percent, end_percent=self.end_percent)
        if self.threshold < 0:
            raise ValueError(f"{NODE}: threshold is {self.threshold:g}, expected 0 (off) or more. Enter such a number.")
        in_order(NODE, start_percent=self.start_percent, end_percent=self.end_percent)


def with_cache(model, settings: CacheSettings):
    """A clone of a MODEL of ours whose sampling runs keep inner features; in place of the settings that it may have had.

    Raises ValueError for another MODEL, and where the network has too few blocks.
    """
    settings.check()
    network = model.model.diffusion_model
    if not isinstance(network, UNetModel):
        raise ValueError(
            f"{NODE}: the network of this MODEL is {type(network).__name__} of another loader, expected one of {LOAD_UNET} or "
            f"another loader of this pack. Load the file with {LOAD_UNET}."
        )
    blocks = network.config.num_skips
    if not 1 <= settings.depth < blocks:
        raise ValueError(
            f"{NODE}: depth is {settings.depth}, and this model has {blocks} input and {blocks} output blocks. Enter a depth from "
            f"1 to {blocks - 1}."
        )
    model = model.clone()
    for kind in (OUTER_SAMPLE, PREPARE):
        model.remove_wrappers_with_key(kind, KEY)
    if settings.threshold > 0:
        model.add_wrapper_with_key(OUTER_SAMPLE, KEY, CachedSampling(settings, network.config))
        if not network.config.temporal:  # a video MODEL reports its memory itself
            model.add_wrapper_with_key(PREPARE, KEY, _with_room)
    return model


def _with_room(executor, patcher, noise_shape, conds, *, model_options, **kwargs):
    """Around the host's loading for a run of an image MODEL, whose memory the host estimates by the latent's area alone.

    It is told of an area larger by the share that the kept features take of its estimate.
    """
    rows, channels, height, width = noise_shape
    need = patcher.model.memory_required([2 * rows, channels, height, width])  # of both branches, as the host asks
    options = model_options["transformer_options"]
    width *= 1 + (options[KEY].room / need if KEY in options else 0)
    return executor(patcher, [rows, channels, height, width], conds, model_options=model_options, **kwargs)


class CachedSampling:
    """Around the host's sampling run: the features live no longer than it, however it ends."""

    def __init__(self, settings: CacheSettings, config: UNetConfig):
        self.settings = settings
        self.config = config
        self.node = get_executing_context()  # the node that is executed now, None in a script

    def __call__(self, executor, noise, *args, **kwargs):
        guider = executor.class_obj
        before = guider.model_options
        run = self._begin(guider, noise.shape)
        guider.model_options = comfy.model_patcher.create_model_options_clone(before)
        guider.model_options["transformer_options"][KEY] = run
        try:
            out = executor(noise, *args, **kwargs)
        finally:
            guider.model_options = before
        self._report(run)
        return out

    def _begin(self, guider, shape):
        levels = guider.model_patcher.get_model_object("model_sampling")
        hooked = (cond["hooks"] for conds in guider.conds.values() for cond in conds if cond.get("hooks"))
        return FeatureRun(
            self.settings.threshold, self.settings.depth,
            levels.percent_to_sigma(self.settings.start_percent), levels.percent_to_sigma(self.settings.end_percent),
            [hook for group in hooked for hook in group.hooks], self._room(guider, shape),
        )

    def _room(self, guider, shape):
        """Bytes of the features that a run on a latent of this shape keeps at a time."""
        rows, _, height, width = shape
        rows = sum(map(len, guider.conds.values())) * rows_kept(guider.model_options.get("context_handler"), rows)
        item = management.dtype_size(guider.model_patcher.model.get_dtype_inference())
        return feature_bytes(self.config, rows, height, width, item, self.settings.depth)

    def _report(self, run):
        text = summary(run)
        logging.info("%s: %s", NODE, text)
        if self.node is not None:
            from server import PromptServer  # not above: it cannot be imported everywhere that a script runs

            if PromptServer.instance.client_id is not None:  # the host takes None as "to everyone"
                PromptServer.instance.send_progress_text(text, self.node.node_id, PromptServer.instance.client_id)


def rows_kept(handler, rows: int) -> int:
    """Of how many rows features are kept on one branch of `rows` rows: all, or those of each window of the host's that lasts."""
    if not isinstance(handler, comfy.context_windows.IndexListContextHandler) or rows <= handler.context_length:
        return rows
    if isinstance(handler, ClipWindows):
        return handler.context_length * handler.most_lasting(rows)
    anchored = HOST_ANCHORS and handler.causal_window_fix
    return sum(len(window) + (anchored and window[0] > 0) for window in handler.context_schedule.func(rows, handler, {}))


def summary(run: FeatureRun) -> str:
    """How much of a run was computed, in a line."""
    calls, full, most_bytes = map(run.total, ("calls", "full", "most_bytes"))
    if not calls:
        return (
            "nothing was kept: no step lies between start_percent and end_percent, or the network is compiled (torch.compile), "
            "which the cache does not go with."
        )
    return f"{full} of {calls} network calls computed in full; up to {most_bytes / 2**20:.0f} MiB of features kept."

