"""How many devices the shipped schedule keeps at work, in the virtual time of `dev.py bench scale`."""

import pytest

from support.devices import multigpu
from tools.bench import scale


@pytest.fixture(scope="module")
def studio():
    return scale.Studio()


@multigpu
@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("clip, lanes, least", [
    (scale.Clip(100), 4, 0.95), (scale.Clip(100), 8, 0.55), (scale.Clip(1000), 8, 0.9), (scale.Clip(1000), 32, 0.6),
    (scale.Clip(100, takes=16), 64, 0.94),
], ids=str)
def test_so_much_of_what_the_devices_could_do_is_done(studio, clip, lanes, least):
    farm = scale.Farm(lanes, call=1.5)
    studio.sample(farm.run_calls, clip, lanes)
    assert farm.efficiency >= least


@multigpu
@pytest.mark.slow
@pytest.mark.one_host
def test_a_link_that_is_full_sets_the_pace(studio):
    """By hand: a call's data come back in 0.5 s, so each of 100 frames' calls takes that long at least."""
    farm = scale.Farm(64, call=0.1, returned=0.5)
    studio.sample(farm.run_calls, scale.Clip(100), 64)
    assert farm.elapsed >= 0.5 * farm.calls
    alone = scale.Farm(1, call=2.0, driver=0.25, sent=0.5, returned=0.25, spread=0.0)
    studio.sample(alone.run_calls, scale.Clip(32), 1)
    assert alone.calls and alone.elapsed == pytest.approx(3.0 * alone.calls)
