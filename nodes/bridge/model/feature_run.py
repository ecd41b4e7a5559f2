"""Inner features that are kept in the course of one sampling run: which branch, window and call each belongs to."""

import logging
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from ....unet.inner_features import InnerFeature
from ..node_names import FEATURE_CACHE

KEY = "temporal_unet.feature_cache"  # of the FeatureRun in `transformer_options`, and of the wrapper that puts it there
MOVES = "temporal_unet.window_moves"  # in `transformer_options`: the next step has no window of these frames
PLACES = ("input", "middle", "output")
LEVELS_KEPT = 2  # noise levels after which a feature goes that was not asked for; after one in a window, most of which move


@dataclass
class FeatureRun:
    """The kept features of one sampling run, from its first step to its last."""

    threshold: float  # relative change of what enters the inner blocks, above which they are computed
    depth: int  # blocks at each end of the network that are always computed
    start: float  # the cache acts where end < sigma <= start
    end: float
    hooks: list = field(default_factory=list)  # the host's hooks on the run's conds: a change of strength changes weights
    room: int = 0  # estimated bytes of all that is kept at a time
    transformer_index: int = 0  # the host's place mark behind the inner blocks
    devices: dict[torch.device, "OnDevice"] = field(default_factory=dict)

    def __deepcopy__(self, memo) -> "FeatureRun":
        """Itself: options that a pack copies in depth belong to the same run."""
        return self

    def total(self, name: str) -> int:
        """Of all devices: `calls`, `full` or `most_bytes` of `OnDevice`."""
        return sum(getattr(on_device, name) for on_device in self.devices.values())

    def acts(self, options: dict, rows: int) -> bool:
        """Whether the cache serves a call on so many rows with these `transformer_options`: other packs' calls may lack marks."""
        uuids = options.get("uuids") or ()
        marked = len(uuids) == len(options.get("cond_or_uncond") or ()) > 0 and options.get("sigmas") is not None
        return marked and rows % len(uuids) == 0 and self.end < _sigma(options) <= self.start

    def stop(self, device: torch.device) -> None:
        """Memory ran out on this device: keeps nothing more in this run."""
        logging.warning("%s: out of memory; the rest of the run goes on without it.", FEATURE_CACHE)
        self.end = self.start
        self.devices[device].kept.clear()

    def call(self, options: dict, control: dict | None, device: torch.device) -> "CachedCall":
        """One call of the network on one branch."""
        window = options.get("context_window")
        side = options["cond_or_uncond"][0]  # the host gives the negative a copy of a positive's cond where their areas differ
        branch = options["uuids"][0], side, None if window is None else tuple(window.index_list)
        on_device = self.devices.setdefault(device, OnDevice())
        made_for = _controlled(control), _patched(options), self._strengths()
        feature = None if window is not None and options.get(MOVES) else on_device.feature(branch, _sigma(options))
        return CachedCall(self, on_device, feature, _sigma(options), made_for)

    def _strengths(self):
        return tuple(hook.strength for hook in self.hooks)


class OnDevice:
    """The features on one device, which one thread works on."""

    def __init__(self):
        self.sigma: float | None = None
        self.level = 0  # noise levels so far
        self.asked: dict[tuple, int] = {}  # branch -> how often at this level
        self.kept: dict[tuple[tuple, int], tuple[int, InnerFeature]] = {}  # (branch, how often before) -> (level, feature)
        self.calls = 0  # of the network on one branch, within start and end
        self.full = 0  # of these, in how many the inner blocks ran
        self.most_bytes = 0  # that were kept at a time

    def feature(self, branch: tuple, sigma: float) -> InnerFeature:
        """That of the branch (uuid, side, window).

        Samplers and guidance nodes that ask twice at one noise level do so for two different latents.
        """
        if sigma != self.sigma:
            self.sigma, self.level, self.asked = sigma, self.level + 1, {}
            self.kept = {
                key: kept for key, kept in self.kept.items() if self.level - kept[0] <= (LEVELS_KEPT if key[0][-1] is None else 1)
            }
        before = self.asked.get(branch, 0)
        self.asked[branch] = before + 1
        _, feature = self.kept.get((branch, before), (0, InnerFeature()))
        self.kept[branch, before] = self.level, feature
        return feature

    def count(self, full: bool) -> None:
        """A call has ended well."""
        self.calls += 1
        self.full += full
        self.most_bytes = max(self.most_bytes, sum(feature.bytes for _, feature in self.kept.values()))


class CachedCall:
    """The inner blocks in one call on one branch, which may be repeated where memory runs out, until `done`.

    Without a `feature` they are computed and nothing is kept.
    """

    def __init__(self, run: FeatureRun, on_device: OnDevice, feature: InnerFeature | None, sigma: float, made_for: Hashable):
        self.run, self.on_device, self.feature, self.sigma, self.made_for = run, on_device, feature, sigma, made_for
        self.depth = run.depth
        self.full = False

    def inner(self, h: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor], options: dict) -> torch.Tensor:
        """As `Hooks.inner`; the place mark "transformer_index" in `options` becomes that behind the inner blocks."""

        def run_inner(h):
            self.full = True
            out = compute(h)
            self.run.transformer_index = options["transformer_index"]
            return out

        if self.feature is None:
            return run_inner(h)
        out = self.feature.at(math.log(self.sigma), h, self.run.threshold, run_inner, self.made_for)
        options["transformer_index"] = self.run.transformer_index
        return out

    def done(self) -> None:
        """The call has ended well."""
        self.on_device.count(self.full)


def _sigma(options):
    return float(options["sigmas"][0])


def _controlled(control):
    """Which residuals there are: a feature that was made with others does not fit."""
    return tuple(tuple(residual is not None for residual in (control or {}).get(place, ())) for place in PLACES)


def _patched(options):
    """Where patches are."""
    counts = sorted((name, len(patches)) for name, patches in options.get("patches", {}).items())
    replaced = options.get("patches_replace", {})
    return tuple(counts), frozenset((name, place) for name, places in replaced.items() for place in places)
