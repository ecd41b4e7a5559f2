"""What the server holds stays the same, however prompts end."""

from client import memory, watch
from prompts import only, svd, with_control

SAMPLER = "TemporalUNetSVDSampler"


def assert_same(held: list[dict[str, int]], first: int) -> None:
    """The last measure is no more than the one at `first`.

    A prompt that left its UNet behind would add 90 MB each time; what the allocator keeps varies by some 10 MB.
    """
    for name, before in held[first].items():
        assert held[-1][name] - before <= max(0.03 * before, 30e6), [f"{h[name] / 1e6:.0f} MB" for h in held]


def test_ten_prompts_end_with_the_memory_of_the_second(fresh_server):
    held = []
    for _ in range(10):
        fresh_server.run(svd())
        held.append(memory(fresh_server))
    assert_same(held, first=1)


def test_errors_leave_nothing_behind(fresh_server):
    """An error in the midst of sampling: model and ControlNet are loaded by then."""
    held = []
    for _ in range(5):
        fresh_server.fault(with_control(prompt := svd(), only(prompt, SAMPLER)))
        fresh_server.run(svd())
        held.append(memory(fresh_server))
    assert_same(held, first=0)


def test_cancels_leave_nothing_behind(fresh_server):
    held = []
    for _ in range(5):
        prompt = svd(steps=1000)

        def cancel_after_the_first_step(watched):
            kind, data = watched.events[-1]
            if kind == "progress" and data["node"] == only(prompt, SAMPLER) and data["value"] == 1:
                fresh_server.interrupt()

        assert watch(fresh_server, prompt, cancel_after_the_first_step).events[-1][0] == "execution_interrupted"
        fresh_server.run(svd())
        held.append(memory(fresh_server))
    assert_same(held, first=0)
