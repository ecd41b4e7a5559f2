"""Inner features that are kept from step to step: when they are computed again, and what takes their place in between."""

import pytest
import torch

from support import small
from support.families import inputs, relative_error
from unet import Hooks
from unet.inner_features import InnerFeature, relative_change


class Kept(Hooks):
    """Hooks of one call that leave out the inner blocks where `feature` knows what they would give."""

    def __init__(self, feature, position, threshold, outer=2):
        self.feature, self.position, self.threshold, self.outer = feature, position, threshold, outer
        self.full = False

    def inner(self, h, compute):
        def run(h):
            self.full = True
            return compute(h)

        return self.feature.at(self.position, h, self.threshold, run)


def line(*values):
    """A function that gives these, one a call, as features of shape [1, 1, 4, 4]."""
    left = [torch.full((1, 1, 4, 4), float(value)) for value in values]
    return lambda h: left.pop(0)


def step(feature, position, entered, compute, threshold=0.3, **more):
    return feature.at(position, torch.full((1, 1, 4, 4), float(entered)), threshold, compute, **more).mean().item()


def never(h):
    raise AssertionError("the inner blocks ran")


def test_a_feature_is_repeated_until_there_are_two_and_extrapolated_then():
    feature, compute = InnerFeature(), line(10, 30)
    assert step(feature, 5.0, 1, compute) == 10
    assert step(feature, 4.0, 1.2, never) == 10
    assert step(feature, 3.0, 2, compute) == 30  # the input has changed by 100 %
    assert step(feature, 2.0, 2.5, never) == 40  # 10 a unit of position, from 5 to 3
    assert step(feature, 1.5, 2.5, never) == 45


def test_the_change_counts_from_the_last_step_that_computed():
    feature, compute = InnerFeature(), line(10, 30)
    assert [step(feature, -i, 1 + 0.1 * i, compute) for i in range(3)] == [10] * 3
    assert step(feature, -4, 1.4, compute) == 30


@pytest.mark.parametrize("change", [
    {"shape": (1, 1, 4, 8)}, {"shape": (2, 1, 4, 4)}, {"dtype": torch.float64}, {"made_for": "other residuals"},
])
def test_nothing_is_carried_over_to_another_shape_dtype_or_purpose(change):
    feature, compute = InnerFeature(), line(10, 30)
    step(feature, 5.0, 1, compute)
    h = torch.ones(change.pop("shape", (1, 1, 4, 4)), dtype=change.pop("dtype", torch.float32))
    assert feature.at(4.0, h, 0.3, compute, **change).mean() == 30
    assert len(feature.points) == 1


def test_a_step_that_failed_can_be_repeated_and_gives_the_same():
    def fails(h):
        raise MemoryError

    feature, other = InnerFeature(), InnerFeature()
    for each in (feature, other):
        step(each, 5.0, 1, line(10))
        step(each, 4.0, 2, line(20))
    with pytest.raises(MemoryError):
        step(feature, 3.0, 4, fails)
    for each in (feature, other):
        assert step(each, 3.0, 4, line(40)) == 40
        assert step(each, 3.0, 4, never) == 40  # it failed later in the step: what was just computed serves
        assert step(each, 2.0, 4, never) == 60


def test_at_most_two_features_and_a_thinned_input_are_kept():
    feature = InnerFeature()
    for i in range(4):
        step(feature, -i, 2 ** i, line(i))
    assert feature.bytes == 2 * 64 + 16


def test_relative_change():
    ones = torch.ones(3, dtype=torch.float16)
    assert relative_change(1.5 * ones, ones) == 0.5
    assert relative_change(0 * ones, 0 * ones) == 0
    assert relative_change(ones, 0 * ones) == float("inf")


@pytest.mark.parametrize("config", [small.SVD, small.SD], ids=["svd", "sd"])
@pytest.mark.parametrize("outer", [1, 2, 3])
def test_with_threshold_0_each_call_of_a_network_equals_one_without(config, outer):
    model, feature = small.build(config), InnerFeature()
    for position in range(3):
        call = inputs(config, frames=2, seed=position)
        expected = model(**call, num_frames=2, controls=small.controls(2))
        hooks = Kept(feature, position, 0.0, outer)
        assert torch.equal(model(**call, num_frames=2, controls=small.controls(2), hooks=hooks), expected)
        assert hooks.full


@pytest.mark.parametrize("config", [small.SVD, small.SD], ids=["svd", "sd"])
def test_a_call_that_leaves_out_the_inner_blocks_equals_the_formula(config):
    """The outer blocks by hand: blocks 0 and 1, the line through the last two features, then the last two output blocks."""
    model, feature = small.build(config), InnerFeature()
    calls = [inputs(config, frames=2, seed=1) for _ in range(3)]
    calls[1]["x"] = calls[0]["x"] * 2 + 1
    calls[2]["x"] = calls[1]["x"] + 0.01
    kept = [Kept(feature, position, 0.2) for position in (5.0, 4.0, 2.0)]
    controls = small.controls(2)
    made = [model(**call, num_frames=2, controls=controls, hooks=hooks) for call, hooks in zip(calls, kept, strict=True)]
    assert [hooks.full for hooks in kept] == [True, True, False]
    older, newer = (entering_outputs(model, call, controls) for call in calls[:2])
    expected = outer_blocks(model, calls[2], newer + 2 * (newer - older), controls)
    assert relative_error(made[2], expected) <= 2e-6


class Watching(Hooks):
    """Runs everything, and remembers or replaces what enters output block 2 of 4."""

    def __init__(self, replacement=None):
        self.replacement, self.entering, self.block = replacement, None, None

    def enter_block(self, kind, index):
        self.block = (kind, index)

    def output_block(self, h, skip):
        if self.block == ("output", 2):
            self.entering = h
            return (h if self.replacement is None else self.replacement), skip
        return h, skip


def entering_outputs(model, call, controls):
    hooks = Watching()
    model(**call, num_frames=2, controls=controls, hooks=hooks)
    return hooks.entering


def outer_blocks(model, call, feature, controls):
    return model(**call, num_frames=2, controls=controls, hooks=Watching(feature))
