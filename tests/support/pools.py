"""What the tests of a pool of workers share: a Ray on this machine, who computes, and which processes there are."""

import time

import pytest

from support.oracle import run_node


@pytest.fixture
def pooled(node):
    def pooled(model, workers=2, here=False):
        return run_node(node("TemporalUNetRayPool"), model, "", workers, here)

    return pooled


@pytest.fixture
def calls_here():
    """Counts what the network of a MODEL computes on this machine: `calls_here(model)` is a list with an entry for each call."""
    handles = []

    def counted(model):
        calls = []
        layer = model.model.diffusion_model.input_blocks[0][0]
        handles.append(layer.register_forward_pre_hook(lambda *args: calls.append(1)))
        return calls

    yield counted
    for handle in handles:
        handle.remove()


@pytest.fixture
def on_call():
    """Has `act` called when the network of a MODEL is called for the `number`-th time from now on, wherever that is computed."""
    handles = []

    def on_call(model, number, act):
        calls = []

        def hook(*args):
            calls.append(1)
            if len(calls) == number:
                act()

        handles.append(model.model.diffusion_model.register_forward_pre_hook(hook))
        return calls

    yield on_call
    for handle in handles:
        handle.remove()


@pytest.fixture
def processes(pack):
    """The processes of the two workers, once both are there."""
    def processes():
        [workers] = pack("nodes.bridge.pool.workers")._all
        while workers.count_ready() < 2:
            time.sleep(0.2)
        return [process for _, process, _ in workers.ray.get([worker.handle.hello.remote() for worker in workers.workers])]

    return processes
