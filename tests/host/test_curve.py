"""Curves as text, tested with the same cases as the editor's own reader: tests/web/curve_text.test.mjs reads the same file."""

import json
from pathlib import Path

import numpy as np
import pytest

CASES = json.loads((Path(__file__).resolve().parents[1] / "curve_cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def curve(pack):
    return pack("nodes.bridge.inputs.curve")


@pytest.mark.parametrize("case", CASES["good"], ids=lambda case: case["text"])
def test_curves_are_read_and_evaluated(curve, case):
    points = curve.parse_curve(case["text"], "curve")
    assert points == [tuple(point) for point in case["points"]]
    np.testing.assert_allclose(curve.evaluate_curve(points, len(case["values"])), case["values"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES["bad"], ids=lambda case: case["text"])
def test_texts_that_are_no_curve_are_refused_with_the_agreed_message(curve, case):
    with pytest.raises(ValueError) as refused:
        curve.parse_curve(case["text"], "Node: input")
    assert str(refused.value) == f"Node: input: {case['error']}; {CASES['form']}."
    assert curve.FORM == CASES["form"]


def test_a_message_quotes_little_of_a_long_text(curve):
    for text in ("1" * 20000, "0:1, " + "x" * 20000, "0:1, " * 4000, "0:" + "9" * 20000):
        with pytest.raises(ValueError) as refused:
            curve.parse_curve(text, "curve")
        assert len(str(refused.value)) < 300
