"""What the tests of a pool of workers share: a Ray on this machine, who computes, and which processes there are."""

import time

import pytest

from support.oracle import run_node


@pytest.fixture
def pooled(node):
    def pooled(model, workers=2, here=False):
        return run_node(node("TemporalUNetRayPool"), model, "", workers, here)

    return pooled


def called(module, act):
    """Has `act()` called before each call of the module, until what this returns is called.

    A hook would not do: of the module, it keeps a run off the workers; of all modules, it changes how layers are computed.
    """
    call = module._call_impl
    module._call_impl = lambda *args, **kwargs: act() or call(*args, **kwargs)
    return lambda: vars(module).pop("_call_impl", None)


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
        [workers] = pack("nodes.bridge.pool.workers")._all
        while workers.count_ready() < 2:
            time.sleep(0.2)
        return [process for _, process, _ in workers.ray.get([worker.handle.hello.remote() for worker in workers.workers])]

    return processes
