"""Ratios, totals and tables of the attention benchmark, from made-up times."""

from __future__ import annotations

import pytest

from benchmarks.attention_report import (
    entropy_line,
    host_table,
    missing_lines,
    over_best_rival,
    shape_table,
    total_table,
    totals,
    with_rates,
    worst,
)
from benchmarks.attention_rivals import CUDNN, FA2, FA3, FLEX, NAIVE, OURS, PORTABLE, WITHOUT_ENTROPY
from benchmarks.attention_shapes import flops
from tests.benchmarks.records import SHAPE, result, times

SECOND = (2, 16, 256, 384, 64)
# cuDNN does not support the first scale, as it does not support a single key.
SCALES = [
    result({OURS: 2.0, PORTABLE: 2.5, FA2: 4.0, NAIVE: 40.0}, SHAPE, refused={CUDNN: "a single key"}),
    result({OURS: 6.0, PORTABLE: 7.5, FA2: 8.0, CUDNN: 5.0, NAIVE: 80.0}, SECOND),
]


def test_rates_and_share_of_the_peak() -> None:
    rated = with_rates(SHAPE, times(1e-3), 2 * flops(SHAPE) / 1e9)
    assert rated["tflops"] == pytest.approx(flops(SHAPE) / 1e9)
    assert rated["share_of_peak"] == pytest.approx(0.5)
    assert rated["quartiles"] == times(1e-3)["quartiles"]
    assert with_rates(SHAPE, times(1e-3), None)["share_of_peak"] is None


def test_only_rivals_are_rivals() -> None:
    faster = result({OURS: 3.0, PORTABLE: 1.0, WITHOUT_ENTROPY: 1.0, NAIVE: 1.0, FA2: 4.0, CUDNN: 2.0})
    assert over_best_rival(faster, "warm") == {"rival": CUDNN, "ratio": 1.5}


def test_a_shape_without_any_rival_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="requires a rival that supports it, got .*no kernel"):
        over_best_rival(result({OURS: 1.0, NAIVE: 1.0}, refused={FA2: "no kernel"}), "warm")


def test_the_worst_shape() -> None:
    assert worst(SCALES, "cold") == {"shape": SECOND, "rival": CUDNN, "ratio": 1.2}


def test_totals_compare_the_scales_that_both_have() -> None:
    total = totals(SCALES, "warm")
    assert (total["scales"], total["seconds"]) == (2, 8.0)
    assert total["over"][FA2] == {"seconds": 12.0, "ratio": pytest.approx(8 / 12), "scales": 2}
    assert total["over"][CUDNN] == {"seconds": 5.0, "ratio": 1.2, "scales": 1}
    assert (total["best_single"], total["over_best_single"]) == (CUDNN, 1.2)
    assert total["over_best_per_scale"] == pytest.approx(8 / (4 + 5))
    assert total["entropy_cost"] is None
    assert total["worst"]["shape"] == SECOND


def test_totals_leave_out_who_was_not_tried_at_every_scale() -> None:
    tried_once = [SCALES[0], result({OURS: 6.0, FA2: 8.0, FLEX: 1.0}, SECOND, refused={CUDNN: "no"})]
    total = totals(tried_once, "warm")
    assert set(total["over"]) == {FA2}
    assert (total["best_single"], total["over_best_per_scale"]) == (FA2, pytest.approx(8 / 12))
    assert total["worst"]["ratio"] == 6.0


def test_the_cost_of_entropy() -> None:
    total = totals([result({OURS: 3.0, WITHOUT_ENTROPY: 2.0, FA2: 4.0})], "warm")
    assert total["entropy_cost"] == 1.5
    models = {"toy": {"warm": total, "cold": {**total, "entropy_cost": 1.25}}}
    assert "toy 1.500 (warm), toy 1.250 (cold)" in entropy_line(models)
    unknown = {"toy": {state: {**total, "entropy_cost": None} for state in ("warm", "cold")}}
    assert "no kernel here has a variant" in entropy_line(unknown)


def test_the_table_of_totals_says_who_is_absent_and_who_is_partial() -> None:
    models = {"toy": {state: totals(SCALES, state) for state in ("warm", "cold")}}
    heading, _, warm, cold = total_table(models, {FA3: "not installed"}).splitlines()
    cells = dict(zip(heading.split(" | "), warm.split(" | "), strict=True))
    assert cells["/ FlashAttention 3"] == "absent"
    assert cells["/ cuDNN"] == "1.20 (1 of 2 scales)"
    assert cells["/ best rival"] == "1.20 (cuDNN)"
    assert cells["/ toprovar, portable"] == "0.80"
    assert cells["ms"] == "8000.000"
    assert cells["largest ratio of a scale"] == "1.20 at 2, 16, 256, 384, 64"
    assert cold.startswith("| toy | cold |")


def test_the_table_of_shapes_has_gaps_where_a_rival_does() -> None:
    heading, _, first, second = shape_table(SCALES, [OURS, FA2, CUDNN], "cold").splitlines()
    assert heading.endswith("| of the peak | / FlashAttention 2 | / cuDNN |")
    assert first.startswith("| 2, 16, 64, 128, 64 | 2000000.0 | 1800000.0 to 2200000.0 |")
    assert first.endswith("| unknown | 0.50 | - |")
    assert second.endswith("| 0.75 | 1.20 |")


def test_a_known_peak_shows_as_a_percentage() -> None:
    known = result({OURS: 1e-6, FA2: 1e-6}, SHAPE, peak=flops(SHAPE) / 1e6 / 0.4)
    assert "| 40% |" in shape_table([known], [OURS, FA2], "warm")


def test_what_is_missing_is_said_with_its_reason() -> None:
    lines = missing_lines({FA3: "not installed"}, SCALES).splitlines()
    assert lines == [
        "- FlashAttention 3 was not measured: not installed.",
        "- cuDNN does not support 2, 16, 64, 128, 64: a single key",
    ]
    assert missing_lines({}, [SCALES[1]]) == ""


def test_the_table_of_the_host() -> None:
    assert "| toprovar | 20.0 | 18.0 to 22.0 |" in host_table({OURS: times(20e-6)})
