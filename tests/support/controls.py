"""What the tests of ControlNets share: models, nets, our node and the host's, and the residuals that a control gives."""

import functools

import comfy.ops
import pytest
import torch

from support.families import relative_error
from support.oracle import CPU, SMALL, Pair, controlnet, fill, run_node, sample, t2i_adapter

BATCH = 2


@pytest.fixture(scope="module")
def pairs(pack, tmp_path_factory):
    """Our MODEL and the host's, made when they are first asked for."""
    folder = tmp_path_factory.mktemp("control")
    return functools.cache(lambda name: Pair(pack, folder, name))


@pytest.fixture(scope="module")
def nets():
    """The host's CONTROL_NETs for the miniatures, made when they are first asked for: "sd1", "sdxl adapter" ..."""
    return functools.cache(lambda name: t2i_adapter(name.split()[0]) if name.endswith("adapter") else controlnet(name))


@pytest.fixture
def ours(node):
    """Our node on a pair of prompts, or on what an earlier node made of them."""

    def apply(conds, net, image, strength=0.7, start=0.0, end=1.0, **options):
        return run_node(node("TemporalUNetApplyControlNetResiduals"), *conds, net, image, strength, start, end, **options)

    return apply


@pytest.fixture
def theirs(node):
    def apply(conds, net, image, strength=0.7, start=0.0, end=1.0):
        return run_node(node("ControlNetApplyAdvanced"), *conds, net, image, strength, start, end)

    return apply


def run(model, conds, frames=BATCH, **options):
    return sample(model, *conds, frames=frames, **options)


def same(pairs, name, our_conds, their_conds, **options):
    """Asserts that the control acts, that both nodes give the same on our MODEL, and that the host's MODEL agrees."""
    pair = pairs(name)
    result = run(pair.ours, our_conds, **options)
    assert relative_error(result, run(pair.ours, their_conds, **options)) <= 1e-5
    assert relative_error(result, run(pair.host, their_conds, **options)) <= 1e-3
    assert relative_error(result, pair.plain(**{"frames": BATCH, **options})) > 1e-4, "the control did nothing"


def residuals_of(control, pair, x, options=({"cond_or_uncond": [0, 1]},)):
    """What a control gives the network for x [2 * frames, 4, h, w], in the last of calls with these options."""
    model = pair.ours.model
    control.pre_run(model, model.model_sampling.percent_to_sigma)
    generator = torch.Generator().manual_seed(2)
    cond = {"c_crossattn": torch.randn(x.shape[0], 7, pair.config.context_dim, generator=generator)}
    if pair.config.temporal:
        cond["y"] = torch.randn(x.shape[0], pair.config.adm_channels, generator=generator)
        cond["c_concat"] = torch.randn(x.shape, generator=generator)
    sigma = model.model_sampling.sigma_max.reshape(1).repeat(x.shape[0]) * 0.5
    for transformer_options in options:
        out = control.get_control(x, sigma, cond, 2, transformer_options)
    out = {place: [None if r is None else r.clone() for r in rs] for place, rs in out.items()}
    control.cleanup()
    return out


@pytest.fixture(scope="module")
def svd_net(pack):
    """An SVD ControlNet with random weights for the miniature "svd"."""
    bridge = pack("nodes.bridge.control.svd_control")
    config = pack("unet").ControlNetConfig(SMALL["svd"], 3, (4, 6, 8, 10))
    net = bridge.SVDControlNet(config, operations=comfy.ops.disable_weight_init, dtype=torch.float32)
    return bridge.SVDControl(fill(net, 13), load_device=CPU)


def windows_of(model, node, length, overlap):
    return run_node(node("ContextWindowsManual"), model, length, overlap, "standard_static", 1, False, "pyramid", 0, False)[0]


def pyramid(length):
    return torch.tensor([min(i + 1, length - i) for i in range(length)], dtype=torch.float32)


def by_hand(model, conds_for, frames, length, overlap, anchor):
    """One step of each window on its own, put together with the pyramid's weights.

    `anchor`: the host prepends the frame before the window, whose result is dropped.
    """
    total = torch.zeros(frames, 4, 8, 8)
    weight = torch.zeros(frames, 1, 1, 1)
    start = 0
    while True:
        start = min(start, frames - length)
        window = list(range(start, start + length))
        shown = [start - 1, *window] if anchor and start > 0 else window
        latent = {"samples": torch.zeros(len(shown), 4, 8, 8), "batch_index": shown}
        part = sample(model, *conds_for(shown), steps=1, cfg=2.0, **latent)[len(shown) - length:]
        total[window] += part * pyramid(length).reshape(-1, 1, 1, 1)
        weight[window] += pyramid(length).reshape(-1, 1, 1, 1)
        if start + length >= frames:
            return total / weight
        start += length - overlap


def anchored():
    import inspect

    import comfy.context_windows

    return "causal_window_fix" in inspect.signature(comfy.context_windows.IndexListContextHandler).parameters
