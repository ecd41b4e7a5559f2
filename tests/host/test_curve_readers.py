"""Python and JavaScript read every text as the same curve, or refuse it in the same words."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

READER = Path(__file__).resolve().parents[1] / "support" / "curve_reader.mjs"


@pytest.fixture(scope="module")
def editor():
    """What the editor makes of a text, as support/curve_reader.mjs writes it."""
    with subprocess.Popen(["node", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as node:
        def read(text: str) -> dict:
            print(json.dumps(text), file=node.stdin, flush=True)
            return json.loads(node.stdout.readline())

        yield read
        node.stdin.close()


# Of all blocks, but none that a later version of Unicode than the interpreter's has: they quote those in different ways.
OTHERS = st.sampled_from("01:,;，：'\"\\ \n\u2028\u200b٣模\ud800\udc00\ue000\U0001f600")
CHARACTERS = st.one_of(st.characters(max_codepoint=0x17F), OTHERS)
SPACES = st.text(st.sampled_from(" \t\n\v\x1c\x85\xa0\u1680\u2003\u2028\u3000\ufeff\u200b"), max_size=2)
NUMBERS = st.one_of(
    st.floats(-2, 2).map(str), st.floats().map(repr), st.integers().map(str), st.integers(0, 10).map(lambda n: str(n / 10)),
    st.text(st.sampled_from("0123456789._eE+-"), max_size=8),
    st.sampled_from(["nan", "-inf", "Infinity", "1_000", "0x1", "٣", "１", "1e400"]),
)
POINTS = st.tuples(SPACES, NUMBERS, SPACES, st.sampled_from("::::：;"), SPACES, NUMBERS, SPACES).map("".join)
RISING = st.dictionaries(st.floats(0, 1), st.floats(-10000, 10000), min_size=1, max_size=6).map(
    lambda points: ", ".join(f"{position!r}:{value!r}" for position, value in sorted(points.items()))
)
LISTS = st.builds(str.join, st.sampled_from(",，、；;"), st.lists(POINTS | st.text(CHARACTERS, max_size=6), max_size=4))
ANY = st.text(CHARACTERS, max_size=60)


@pytest.mark.slow
@pytest.mark.one_host
@settings(max_examples=300)
@given(st.one_of(RISING, LISTS, ANY))
@example("0:1, 0.5:2" + "," * 50)
@example("0:" + "1" * 400)
@example("\ud83d:\ude00")
@example("0:0, 2e-311:1")
def test_python_and_the_editor_read_the_same(pack, editor, text):
    curve = pack("nodes.bridge.inputs.curve")
    theirs = editor(text)
    try:
        points = curve.parse_curve(text, "input")
    except ValueError as error:
        assert type(error) is ValueError and theirs == {"error": str(error)}
        assert len(str(error)) < 400
    else:
        assert theirs.get("points") == [list(point) for point in points], theirs
        np.testing.assert_allclose(theirs["values"], curve.evaluate_curve(points, 7), rtol=1e-9, atol=1e-9)
