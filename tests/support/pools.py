"""What the tests of a pool of workers share: a Ray on this machine, who computes, and which processes there are."""

import os
import time

import pytest

from support.oracle import run_node

PATIENCE = 600.0  # seconds: a worker may be slow to start or to answer where much else runs
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's own 15 workers wait for whatever else runs on this machine,
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # and it ends them where that fills the memory


@pytest.fixture
def pooled(node, pack):
    """What the node makes of a MODEL, once all workers are there."""
    def pooled(model, workers=2, here=False):
        made = _started(lambda: run_node(node("TemporalUNetRayPool"), model, "", workers, here, PATIENCE))
        _wait_for(pack, workers)
        return made

    return pooled


def called(module, act):
    """Has `act()` called before each call of the module, until what this returns is called.

    A hook would not do: of the module, it keeps a run off the workers; of all modules, it changes how layers are computed.
    """
    call = module._call_impl
    module._call_impl = lambda *args, **kwargs: act() or call(*args, **kwargs)
    return lambda: vars(module).pop("_call_impl", None)


def _started(run):
    """`run()`, again where Ray had not started within its own 30 seconds."""
    for _ in range(3):
        try:
            return run()
        except RuntimeError as error:
            if "timed out during startup" not in str(error):
                raise
            late = error
    raise late


def _wait_for(pack, count):
    [workers] = pack("nodes.bridge.pool.workers")._all
    while workers.count_ready() < count:
        time.sleep(0.1)
    return workers


@pytest.fixture
def calls_here():
    """Counts what the network of a MODEL computes on this machine: `calls_here(model)` is a list with an entry for each call."""
    ends = []

    def counted(model):
        calls = []
        layer = model.model.diffusion_model.input_blocks[0][0]
        ends.append(called(layer, lambda: calls.append(1)))
        return calls

    yield counted
    for end in ends:
        end()


@pytest.fixture
def on_call():
    """Has `act` called when the network of a MODEL is called for the `number`-th time from now on, wherever that is computed."""
    ends = []

    def on_call(model, number, act):
        calls = []

        def counted():
            calls.append(1)
            if len(calls) == number:
                act()

        ends.append(called(model.model.diffusion_model, counted))
        return calls

    yield on_call
    for end in ends:
        end()


@pytest.fixture
def processes(pack):
    """The processes of the two workers, once both are there."""
    def processes():
        while True:
            workers = _wait_for(pack, 2)
            try:
                return [process for _, process, _ in workers.ray.get([worker.handle.hello.remote() for worker in workers.workers])]
            except workers.lost:  # which is seen at its next call only
                time.sleep(0.1)

    return processes
