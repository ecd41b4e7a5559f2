"""ControlNets on clips in context windows: against windows computed by hand, and how often a control image is prepared."""

import comfy.controlnet
import pytest
import torch
from comfy.context_windows import IndexListContextWindow

from support.controls import (  # noqa: F401  (fixtures among them)
    anchored,
    by_hand,
    nets,
    ours,
    pairs,
    residuals_of,
    svd_net,
    theirs,
    windows_of,
)
from support.families import relative_error
from support.oracle import hints, prompts, run_node, sample, t2i_adapter

CLIP = 7


@pytest.mark.parametrize("name, net", [("svd", "sd2"), ("sd1", "sd1"), ("sd1", "sd1 adapter")])
@pytest.mark.parametrize("length, overlap", [(4, 1), pytest.param(3, 1, marks=pytest.mark.one_host)])
@pytest.mark.slow
def test_residuals_follow_the_frames_of_context_windows(pairs, nets, node, ours, theirs, name, net, length, overlap):
    pair = pairs(name)
    conds, images = prompts(pair.config), hints(CLIP)
    expected = by_hand(
        pair.ours, lambda shown: theirs(conds, nets(net), images[shown]), CLIP, length, overlap, anchored()
    )
    latent = {"samples": torch.zeros(CLIP, 4, 8, 8), "batch_index": list(range(CLIP)), "steps": 1, "cfg": 2.0}
    windowed = windows_of(pair.ours, node, length, overlap)
    assert relative_error(sample(windowed, *ours(conds, nets(net), images), **latent), expected) <= 1e-4
    if net != "sd1 adapter":  # whose residuals keep the rows of the first window
        theirs_in_windows = sample(windowed, *theirs(conds, nets(net), images), **latent)
        assert relative_error(theirs_in_windows, expected) > 1e-3, "the host follows the frames by itself now"


@pytest.mark.slow
def test_frame_strengths_and_masks_follow_the_frames_of_windows(pairs, nets, node, ours):
    pair = pairs("svd")
    conds, images = prompts(pair.config), hints(CLIP)
    masks = torch.rand(CLIP, 64, 64, generator=torch.Generator().manual_seed(8))
    strengths = torch.linspace(0, 1, CLIP)

    def conds_for(shown):
        """Without windows a clip of the shown frames: the curve's values go into the masks."""
        return ours(conds, nets("sd2"), images[shown], mask=masks[shown] * strengths[shown][:, None, None])

    expected = by_hand(pair.ours, conds_for, CLIP, 4, 1, anchored())
    controlled = ours(conds, nets("sd2"), images, mask=masks, frame_strengths="0:0, 1:1")
    result = sample(
        windows_of(pair.ours, node, 4, 1), *controlled, samples=torch.zeros(CLIP, 4, 8, 8),
        batch_index=list(range(CLIP)), steps=1, cfg=2.0,
    )
    assert relative_error(result, expected) <= 1e-4


@pytest.mark.slow
@pytest.mark.one_host
def test_in_the_svd_samplers_own_windows(pairs, nets, node, ours):
    pair = pairs("svd")
    controlled = ours(prompts(pair.config), nets("sd2"), hints(CLIP))
    latent = {"samples": torch.zeros(CLIP, 4, 8, 8)}
    arguments = (latent, 5, 2, 1.0, 2.0, "linear", "euler", "karras")
    result, plain = (
        run_node(node("TemporalUNetSVDSampler"), pair.ours, *conds, *arguments, window_frames=4, window_overlap=1,
                 closed_loop=True)[0]["samples"]
        for conds in (controlled, prompts(pair.config))
    )
    assert torch.isfinite(result).all() and relative_error(result, plain) > 1e-3


# how often control images are prepared


def counted(module):
    """The list of the rows that each call of this layer will see, and what ends the counting."""
    rows = []
    return rows, module.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("where", ["whole", "the host's windows", "our windows"])
def test_svds_net_embeds_each_image_once_a_run(pairs, node, ours, svd_net, where):
    pair = pairs("svd")
    conds = ours(prompts(pair.config), svd_net, hints(CLIP))
    model = windows_of(pair.ours, node, 4, 1) if where == "the host's windows" else pair.ours
    rows, handle = counted(svd_net.control_model.controlnet_cond_embedding)
    if where == "our windows":
        arguments = ({"samples": torch.zeros(CLIP, 4, 8, 8)}, 5, 3, 1.0, 2.0, "linear", "euler", "karras")
        run_node(node("TemporalUNetSVDSampler"), model, *conds, *arguments, window_frames=4, window_overlap=1)
    else:
        sample(model, *conds, frames=CLIP, steps=3)
    handle.remove()
    assert sum(rows) == CLIP


@pytest.mark.slow
@pytest.mark.one_host
def test_svds_net_embeds_one_image_for_all_frames_once(pairs, node, ours, svd_net):
    pair = pairs("svd")
    conds = ours(prompts(pair.config), svd_net, hints(1))
    rows, handle = counted(svd_net.control_model.controlnet_cond_embedding)
    sample(windows_of(pair.ours, node, 4, 1), *conds, frames=CLIP, steps=3)
    handle.remove()
    assert rows == [1]


def test_svds_residuals_follow_the_frames_of_windows(pairs, node, ours, svd_net):
    pair = pairs("svd")
    conds, images = prompts(pair.config), hints(CLIP)
    expected = by_hand(pair.ours, lambda shown: ours(conds, svd_net, images[shown]), CLIP, 4, 1, anchored())
    latent = {"samples": torch.zeros(CLIP, 4, 8, 8), "batch_index": list(range(CLIP)), "steps": 1, "cfg": 2.0}
    result = sample(windows_of(pair.ours, node, 4, 1), *ours(conds, svd_net, images), **latent)
    assert relative_error(result, expected) <= 1e-4


@pytest.mark.slow
@pytest.mark.one_host
def test_a_t2i_adapter_runs_once_for_each_window(pairs, node, ours):
    pair, net = pairs("sd1"), t2i_adapter("sd1")
    conds = ours(prompts(pair.config), net, hints(CLIP))
    rows, handle = counted(net.t2i_model)
    sample(windows_of(pair.ours, node, 4, 1), *conds, frames=CLIP, steps=3)
    handle.remove()
    assert len(rows) == 2  # frames 0 to 3 and 3 to 6


@pytest.mark.slow
def test_the_hosts_nets_have_their_images_resized_once_for_each_window(pairs, nets, node, ours):
    pair, calls = pairs("sd1"), []
    net = nets("sd1").copy()
    net.preprocess_image = lambda image: calls.append(len(image)) or image
    sample(windows_of(pair.ours, node, 4, 1), *ours(prompts(pair.config), net, hints(CLIP)), frames=CLIP, steps=3)
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("name, net", [("svd", "svd"), ("sd1", "sd1 adapter")])
def test_windows_of_a_clip_with_more_images_than_frames_use_the_first(pairs, nets, ours, svd_net, node, caplog, name, net):
    pair, images = pairs(name), hints(CLIP + 3)
    net = svd_net if net == "svd" else nets(net)
    windowed = windows_of(pair.ours, node, 4, 1)
    results = [
        sample(windowed, *ours(prompts(pair.config), net, given), frames=CLIP, steps=2) for given in (images[:CLIP], images)
    ]
    assert torch.equal(*results)
    lines = [record.message for record in caplog.records if "control images" in record.message]
    assert lines == [f"Apply ControlNet Residuals: found {CLIP + 3} control images for {CLIP} frames; the first {CLIP} are used."]


@pytest.mark.parametrize("name, net", [("svd", "svd"), ("sd1", "sd1"), ("sd1", "sd1 adapter")])
def test_a_window_over_images_that_earlier_windows_prepared_gets_its_own(pairs, nets, ours, svd_net, name, net):
    pair, images = pairs(name), hints(CLIP)
    net = svd_net if net == "svd" else nets(net)
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(6))

    def given(control_images, windows):
        """The residuals in the last of these windows, after those before it."""
        options = [{"cond_or_uncond": [0, 1], **({"context_window": window} if window else {})} for window in windows]
        return residuals_of(ours(prompts(pair.config), net, control_images)[0][0][1]["control"], pair, x, options)

    windows = [IndexListContextWindow(frames, dim=0, total_frames=CLIP) for frames in ([0, 1, 2], [4, 5, 6], [5, 1, 4])]
    kept, alone = given(images, windows), given(images[[5, 1, 4]], [None])
    pieces = [(a, b) for place in alone for a, b in zip(kept[place], alone[place], strict=True) if b is not None]
    assert len(pieces) >= 4 and max(relative_error(a, b) for a, b in pieces) <= 1e-5


class ChoosesItself(comfy.controlnet.ControlBase):
    """As Advanced-ControlNet's for SVD: it scales its images once, and chooses those of the frames at hand by `sub_idxs`."""

    def __init__(self, seen):
        super().__init__()
        self.seen, self.sub_idxs, self.full_latent_length, self.context_length = seen, None, 0, 0

    def copy(self):
        other = ChoosesItself(self.seen)
        self.copy_to(other)
        return other

    def set_cond_hint(self, cond_hint, *args, **more):
        return super().set_cond_hint(cond_hint * 2 - 1, *args, **more)

    def get_control(self, x, t, cond, batched_number, transformer_options):
        if "ad_params" in transformer_options:
            self.sub_idxs = transformer_options["ad_params"]["sub_idxs"]
        frames = range(len(x) // batched_number) if self.sub_idxs is None else self.sub_idxs
        told = self.full_latent_length, self.context_length, cond.get("num_video_frames")
        self.seen.append((self.cond_hint_original[frames], *told))
        return {"input": [], "middle": [torch.ones(len(x), 1, 1, 1)], "output": []}


@pytest.mark.parametrize("window, frames", [
    ({}, [0, 1, 2]),
    ({"context_window": IndexListContextWindow([4, 2, 5], dim=0, total_frames=CLIP)}, [4, 2, 5]),
    ({"ad_params": {"sub_idxs": [4, 2, 5], "full_length": CLIP, "context_length": 3}}, [4, 2, 5]),
])
def test_a_control_of_another_pack_that_chooses_its_images_keeps_them_and_is_told_the_frames(pairs, ours, window, frames):
    pair, images, seen = pairs("sd1"), hints(CLIP), []
    conds = ours(prompts(pair.config), ChoosesItself(seen), images, frame_strengths="0:0, 1:6")
    options = {"cond_or_uncond": [0, 1], **window}
    made = residuals_of(conds[0][0][1]["control"], pair, torch.zeros(6, 4, 8, 8), [options])
    (shown, total, length, _), = seen
    assert torch.equal(shown, images.movedim(-1, 1)[frames] * 2 - 1) and (total, length) == (CLIP if window else 3, 3)
    expected = [6 * frame / (total - 1) for frame in frames] * 2
    assert torch.allclose(made["middle"][0].flatten(), torch.tensor(expected))


def test_a_control_of_another_pack_counts_the_frame_that_the_hosts_windows_prepend(pairs, ours):
    """As Advanced-ControlNet's for SVD, which divides its rows by the host's count."""
    seen, count = [], 3
    window = IndexListContextWindow([3, 4, 5], dim=0, total_frames=CLIP)
    window.causal_anchor_index = 2
    conds = ours(prompts(pairs("svd").config), ChoosesItself(seen), hints(CLIP))
    cond, x = {"num_video_frames": count}, torch.zeros(2 * (count + 1), 4, 8, 8)
    conds[0][0][1]["control"].get_control(x, torch.ones(len(x)), cond, 2, {"context_window": window})
    assert seen[0][1:] == (CLIP, 4, 4) and cond == {"num_video_frames": count}
