"""`dev.py bench speed` on miniatures: its figures hang together."""

import pytest

from tools.bench import speed
from tools.bench.timing import in_turns, medians, ratio


@pytest.mark.slow
@pytest.mark.one_host
def test_all_networks_give_one_result_and_their_figures_hang_together(pack):
    settings = speed.parse(["--tiny", "--device", "cpu", "--rounds", "1", "--families", "svd", "sd15"])
    calls = speed.measured(pack, settings)["calls"]
    assert list(calls) == ["svd 4x8x8", "sd15 2x8x8", "sd15 controlled 2x8x8"]
    for figures in calls.values():
        rows = figures["networks"]
        assert list(rows) == ["ours", "host", "host with SDPA"]
        assert 0.8 <= rows["ours"]["TFLOP"] / rows["host"]["TFLOP"] <= 1
        assert rows["host with SDPA"]["TFLOP"] == rows["host"]["TFLOP"]
        for row in rows.values():
            assert row["error"] <= 1e-5 and row["peak MiB"] > 0
            assert row["GFLOP/s"] == pytest.approx(1e3 * rows["host"]["TFLOP"] / row["seconds"], rel=0.1)
            assert row["of the peak"] == pytest.approx(row["GFLOP/s"] / max(figures["machine's GFLOP/s"].values()), rel=0.1)
        for names, ratios in figures["ratios"].items():  # of one round
            mine, other = names.split(" / ")
            for unit in ("seconds", "CPU seconds"):
                assert ratios[unit] == pytest.approx(rows[mine][unit] / rows[other][unit], rel=0.02)


def test_rounds_go_in_alternating_order_and_ratios_are_taken_within_a_round():
    order = []
    in_turns({name: lambda name=name: lambda: order.append(name) for name in "abc"}, 3, "cpu")
    assert "".join(order) == "abccbaabc"
    mine, others = [(1.0, 2.0), (8.0, 4.0), (3.0, 9.0)], [(2.0, 2.0), (4.0, 8.0), (3.0, 3.0)]
    assert medians(mine) == {"seconds": 3.0, "CPU seconds": 4.0}
    assert ratio(mine, others) == {"seconds": 1.0, "CPU seconds": 1.0}


@pytest.mark.parametrize("text", ["14x32", "0x8x8", "axbxc"])
def test_a_size_that_is_none_is_refused_with_what_is_expected(text, capsys):
    with pytest.raises(SystemExit):
        speed.parse(["--size", text])
    assert f"{text!r} is no size; expected rows, height and width" in capsys.readouterr().err
