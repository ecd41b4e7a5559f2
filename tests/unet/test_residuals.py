"""Control residuals: where they go, how strong, for which rows, and what does not fit."""

import pytest
import torch

from support import small
from support.families import inputs
from unet import Hooks, Residuals


class Skips(Hooks):
    """Keeps what reaches the output blocks and what leaves the middle block."""

    def __init__(self):
        self.skips, self.middle = [], None

    def middle_block(self, h, emb):
        self.middle = h
        return h

    def output_block(self, h, skip):
        self.skips.insert(0, skip)
        return h, skip


def run(model, call, **options):
    hooks = Skips()
    result = model(**call, num_frames=3, hooks=hooks, **options)
    return result, hooks


def svd(batch=1):
    return small.build(small.SVD), inputs(small.SVD, frames=3, batch=batch)


@pytest.mark.parametrize("strength", [1.0, 0.5, 2.0, -1.0])
def test_each_residual_is_added_to_its_skip_or_the_middle_times_the_strength(strength):
    model, call = svd()
    controls = small.controls(3)
    _, plain = run(model, call)
    _, controlled = run(model, call, controls=controls, control_strength=strength)
    for skip, wanted, control in zip(controlled.skips, plain.skips, controls[:-1], strict=True):
        assert torch.equal(skip, wanted + strength * control)
    assert torch.equal(controlled.middle, plain.middle + strength * controls[-1])


def test_strength_zero_is_bit_equal_to_no_controls():
    model, call = svd()
    controls = [torch.full_like(control, float("inf")) for control in small.controls(3)]
    assert torch.equal(run(model, call, controls=controls, control_strength=0)[0], run(model, call)[0])


def test_strength_two_equals_doubled_residuals():
    model, call = svd()
    controls = small.controls(3)
    doubled = run(model, call, controls=[2 * control for control in controls])[0]
    assert torch.equal(run(model, call, controls=controls, control_strength=2.0)[0], doubled)


def test_the_same_controls_twice_give_the_same_result():
    model, call = svd()
    controls = small.controls(3)
    first = run(model, call, controls=controls, control_strength=0.5)[0]
    assert torch.equal(run(model, call, controls=controls, control_strength=0.5)[0], first)


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_repeat_whole_for_each_video(rows):
    """The residuals of one video of 3 frames, or of one image, serve both videos of the batch."""
    model, call = svd(batch=2)
    controls = small.controls(rows)
    repeated = [torch.cat([control] * (6 // rows)) for control in controls]
    assert torch.equal(run(model, call, controls=controls)[0], run(model, call, controls=repeated)[0])


def test_residuals_of_odd_sizes_fit():
    model, call = small.build(small.SVD), inputs(small.SVD, frames=3, size=(7, 5))
    _, plain = run(model, call)
    controls = small.controls(3, 7, 5)
    _, controlled = run(model, call, controls=controls)
    assert torch.equal(controlled.skips[2], plain.skips[2] + controls[2])


@pytest.mark.parametrize("count", [1, small.SKIPS, small.SKIPS + 2])
def test_a_wrong_count_of_controls_is_an_error(count):
    model, call = svd()
    controls = (small.controls(3) * 2)[:count]
    with pytest.raises(ValueError, match=rf"found {count} residuals, expected {small.SKIPS + 1}\b"):
        run(model, call, controls=controls)


@pytest.mark.parametrize(
    "place, index, shape",
    [
        ("output", 1, (3, 64, 8, 8)), ("output", 2, (3, 32, 8, 8)), ("output", 3, (2, 64, 4, 4)),
        ("output", 0, (6, 32, 8, 8)), ("middle", 4, (3, 64, 2, 2)),
    ],
    ids=["channels", "size", "rows", "more rows", "middle"],
)
def test_a_residual_that_does_not_fit_is_an_error_with_both_shapes(place, index, shape):
    model, call = svd()
    controls = small.controls(3)
    expected = list(controls[index].shape)
    controls[index] = torch.zeros(shape)
    with pytest.raises(ValueError) as error:
        run(model, call, controls=controls)
    assert str(list(shape)) in str(error.value) and str(expected) in str(error.value) and place in str(error.value)


def test_each_place_is_consumed_from_its_end():
    residuals = Residuals(output=[torch.full((1, 1, 1, 1), value) for value in (1.0, 2.0)])
    h = torch.zeros(1, 1, 1, 1)
    assert [residuals.add("output", h).item() for _ in range(3)] == [2.0, 1.0, 0.0]


def test_an_input_residual_reaches_both_h_and_the_skip():
    """A T2I-Adapter's: the sum enters the next block and the skip."""
    model, call = svd()
    residual = small.controls(3)[0]
    seen = []
    model.input_blocks[1][0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    _, plain = run(model, call)
    _, adapted = run(model, call, controls=Residuals(input=[residual]))
    assert torch.equal(seen[1], seen[0] + residual)
    assert torch.equal(adapted.skips[0], plain.skips[0] + residual)


def test_a_gap_leaves_its_place_alone():
    residuals = Residuals(middle=[None])
    h = torch.ones(1, 1, 1, 1)
    assert torch.equal(residuals.add("middle", h), h)


def test_residuals_take_the_dtype_of_the_activations():
    h = torch.ones(1, 2, 1, 1, dtype=torch.float16)
    out = Residuals(middle=[torch.full((1, 2, 1, 1), 0.5)]).add("middle", h)
    assert out.dtype == torch.float16 and torch.equal(out, torch.full_like(h, 1.5))


def test_adding_changes_neither_the_activations_nor_the_residual():
    h, residual = torch.ones(2, 2, 1, 1), torch.ones(1, 2, 1, 1)
    Residuals(output=[residual]).add("output", h)
    assert torch.equal(h, torch.ones(2, 2, 1, 1)) and torch.equal(residual, torch.ones(1, 2, 1, 1))


def test_residuals_wrapped_by_the_caller_equal_the_list():
    model, call = svd()
    controls = small.controls(3)
    wrapped = Residuals(output=controls[:-1], middle=controls[-1:])
    assert torch.equal(run(model, call, controls=wrapped)[0], run(model, call, controls=controls)[0])
