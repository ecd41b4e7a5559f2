"""Kernels for graphics cards, run by Triton's interpreter on the CPU, against PyTorch in float64."""

import json
import platform
import sys

import pytest

from support.children import run_python

pytestmark = [
    pytest.mark.slow, pytest.mark.one_host,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="PyTorch brings Triton to Linux on x86-64 alone"
    ),
]

START = """
import json, os
os.environ["TRITON_INTERPRET"] = "1"
from dataclasses import replace
import torch
import torch.nn.functional as F
from support.families import TINY, relative_error
from unet import UNetModel, card_kernels, triton_kernels

torch.manual_seed(0)
"""
SCRIPTS = {"norm": """
usual = triton_kernels.PROGRAMS, triton_kernels.CHUNKS
triton_kernels.PROGRAMS, triton_kernels.CHUNKS = 4, 2  # several chunks of rows, pooled in several rounds
for name, shape, order in (
    ("images", (1, 96, 11, 13), torch.channels_last), ("one pixel", (2, 64, 1, 1), torch.channels_last),
    ("videos", (2, 64, 3, 7, 5), torch.channels_last_3d),
):
    x = (torch.randn(shape) * 2 + 50).to(memory_format=order)  # a mean far from 0, whose square would swallow the variance
    frames = shape[2] if len(shape) == 5 else 1
    weight, bias, shift = torch.randn(shape[1]), torch.randn(shape[1]), torch.randn(shape[0] * frames, shape[1])
    each = shift[..., None, None] if len(shape) == 4 else shift.unflatten(0, (shape[0], -1)).movedim(1, 2)[..., None, None]
    for added, silu in ((None, False), (shift, True)):
        wide = x.double() if added is None else x.double() + each
        wanted = F.group_norm(wide, 32, weight.double(), bias.double(), 1e-5)
        made = triton_kernels.group_norm(x, weight, bias, 32, 1e-5, added, silu)
        found[f"{name} {silu}"] = relative_error(made, F.silu(wanted) if silu else wanted)
        assert made.stride() == x.stride()
triton_kernels.PROGRAMS, triton_kernels.CHUNKS = usual
""", "sums": """
x, change = (torch.randn(2, 48, 3, 5, 7).to(memory_format=torch.channels_last_3d) for _ in range(2))
bias, factor = torch.randn(48), torch.randn(1)
whole = change.double() + bias.double().view(-1, 1, 1, 1)
found["sum"] = relative_error(triton_kernels.add(x, change, bias, None), x.double() + whole)
share = torch.sigmoid(factor.double())
blend = share * x.double() + (1 - share) * (x.double() + whole)
found["blend"] = relative_error(triton_kernels.add(x, change, bias, factor), blend)
both = torch.randn(5, 7, 96)
value, gate = both.double().chunk(2, -1)
found["geglu"] = relative_error(triton_kernels.geglu(both), value * F.gelu(gate))
""", "network": """
config = replace(
    TINY["svd"], model_channels=32, head_channels=32, channel_mult=(1,), num_res_blocks=(1,), depth_in=(1,), depth_out=(0, 1),
    depth_middle=None, self_attention=(True,),
)
network = UNetModel(config).eval().requires_grad_(False)
for parameter in network.parameters():
    parameter.normal_(0, 0.2)
frames = 2
given = dict(
    x=torch.randn(frames, config.in_channels, 3, 4), timesteps=torch.full((1,), 2.0), context=torch.randn(1, 1, config.context_dim),
    y=torch.randn(1, config.adm_channels), num_frames=frames,
)
with torch.inference_mode():
    wanted = network(**given)
    calls = []
    norm = triton_kernels.group_norm
    triton_kernels.group_norm = lambda *args: calls.append(args[0].ndim) or norm(*args)
    card_kernels.runs, card_kernels._enough = (lambda x: True), (lambda device: 0)
    for budget in (None, 2**12):
        made = network(**given, budget=budget)
        found[str(budget)] = relative_error(made, wanted)
        assert made.is_contiguous()
    found_norms = {ndim: calls.count(ndim) for ndim in (4, 5)}
    assert found_norms[4] and found_norms[5], found_norms
"""}


@pytest.fixture(scope="module")
def found():
    """What each script leaves in `found`, by name; of one process, whose kernels are interpreted."""
    parts = [f"found = {{}}\n{script}\nprint(json.dumps([{name!r}, found]))" for name, script in SCRIPTS.items()]
    said = run_python("-c", "\n".join([START, *parts])).stdout
    return dict(json.loads(line) for line in said.splitlines() if line.startswith("["))


def test_a_norm_and_its_silu_are_pytorchs_for_images_and_videos(found):
    assert len(found["norm"]) == 6
    assert max(found["norm"].values()) < 2e-5, found["norm"]


def test_sums_and_geglu_are_pytorchs(found):
    assert max(found["sums"].values()) < 1e-6, found["sums"]


def test_a_video_network_by_the_kernels_is_the_network(found):
    assert max(found["network"].values()) < 1e-5, found["network"]
