"""Memory that runs out in any one layer call of a run: the run goes on to the same result, or the next run gives it."""

import traceback
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.families import TINY, relative_error, write_unet
from support.gguf_networks import write_gguf
from support.oracle import CPU, fill, hints, prompts, run_node, sample

pytestmark = [pytest.mark.slow, pytest.mark.one_host]

LAYERS = {  # the operations of which layers consist
    "linear", "_linear_pointwise", "conv2d", "conv3d", "group_norm", "layer_norm", "scaled_dot_product_attention", "baddbmm", "bmm",
}
ONE_LEVEL = {
    "model_channels": 32, "channel_mult": (1,), "num_res_blocks": (1,), "depth_in": (1,), "depth_out": (1, 0), "depth_middle": 0,
    "self_attention": (True,),
}
SD = replace(TINY["sd1"], **ONE_LEVEL)
SVD = replace(TINY["svd"], **ONE_LEVEL, head_channels=32)
SIZE = (4, 4)


class RunsOut(TorchDispatchMode):
    """Memory runs out in the `at`-th layer call, counted from 1. `made`: storages that operations made and that are alive."""

    def __init__(self, at: int | None = None):
        super().__init__()
        self.at, self.calls = at, 0
        self.made: weakref.WeakSet = weakref.WeakSet()
        self.given: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name.partition("::")[2] in LAYERS:
            self.calls += 1
            if self.calls == self.at:
                raise torch.OutOfMemoryError(f"out of memory in layer call {self.at} (raised by the test)")
        self.given.update(storage for storage in storages(args) if storage not in self.made)
        out = function(*args, **(kwargs or {}))
        self.made.update(storage for storage in storages((out,)) if storage not in self.given)
        return out

    def left(self) -> int:
        return sum(storage.nbytes() for storage in self.made)


def storages(values):
    return [value.untyped_storage() for value in values if isinstance(value, torch.Tensor)]


@pytest.fixture(scope="module")
def load(pack, tmp_path_factory):
    """load(config): a MODEL of random weights by our loader; load(config, write_gguf) from a GGUF file."""
    folder = tmp_path_factory.mktemp("out_of_memory")

    def make(config, write=write_unet):
        path = folder / ("net.gguf" if write is write_gguf else "net.safetensors")
        metadata = {"temporal_unet.head_channels": str(config.head_channels)} if config.head_channels else None
        write(path, config, **({} if write is write_gguf else {"metadata": metadata}))
        return pack("nodes.bridge.model.unet_loader").load_model(str(path))

    return make


def video(pack, node, load) -> Callable:
    """The SVD sampler on a clip that a ControlNet leads."""
    import comfy.ops

    module = pack("nodes.bridge.control.svd_control")
    config = pack("unet").ControlNetConfig(SVD, 3, (4, 6, 8, 10))
    net = fill(module.SVDControlNet(config, operations=comfy.ops.disable_weight_init, dtype=torch.float32), 13)
    control = module.SVDControl(net, load_device=CPU)
    conds = run_node(
        node("TemporalUNetApplyControlNetResiduals"), *prompts(SVD), control, hints(2, size=32), 0.7, 0.0, 1.0)
    model, latent = load(SVD), {"samples": torch.zeros(2, 4, *SIZE)}
    arguments = (latent, 5, 1, 1.0, 2.5, "linear", "euler", "karras")
    return lambda: run_node(node("TemporalUNetSVDSampler"), model, *conds, *arguments)[0]["samples"]


def image(model, **options) -> Callable:
    """The host's sampler on a MODEL of an image network, which runs in no chunks."""
    return lambda: sample(model, *prompts(SD), **{"frames": 1, "size": SIZE, "steps": 1, **options})


def cached(pack, node, load) -> Callable:
    """Two steps, of which the second takes the inner blocks from the first."""
    return image(run_node(node("TemporalUNetFeatureCache"), load(SD), 1.0, 1)[0], steps=2, cfg=1.0)


RUNS = {  # name -> (what makes a run, whether it goes on where memory runs out)
    "SVD sampler with ControlNet": (video, True),
    "KSampler": (lambda pack, node, load: image(load(SD)), False),
    "GGUF": (lambda pack, node, load: image(load(SD, write_gguf)), False),
    "feature cache": (cached, True),
}


@pytest.mark.parametrize("name", RUNS)
def test_wherever_memory_runs_out_the_result_is_the_same_and_nothing_is_left(pack, node, load, monkeypatch, name):
    """Video networks go on in smaller chunks, a cached run without the cache; others end, and the next run is right."""
    monkeypatch.setattr(pack("nodes.bridge.model.memory_budget"), "BUDGETS", (2**20, 2**16))  # of a size for miniatures
    make, goes_on = RUNS[name]
    run = make(pack, node, load)
    expected = run()
    with RunsOut() as whole:
        assert torch.equal(run(), expected)
    assert whole.calls > 50 and whole.left() == 0
    for at in range(1, whole.calls + 1):
        ended = embedding = False
        with RunsOut(at) as fault:
            try:
                assert relative_error(run(), expected) <= 5e-5, f"memory ran out in layer call {at}"
            except torch.OutOfMemoryError as error:
                ended, calls = True, traceback.extract_tb(error.__traceback__)
                embedding = any(frame.name == "embed_hint" for frame in calls)  # of one control image: nothing is smaller
        assert ended is (embedding or not goes_on) and fault.left() == 0, f"memory ran out in layer call {at}"
        if ended:
            assert torch.equal(run(), expected), f"the run after memory ran out in layer call {at}"
    assert torch.equal(run(), expected)
