"""Comparisons at equal cost: who meets whom, and which way differences go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.pairs import Pair, differences, matched
from toprovar_compiler.evaluation.bootstrap import Resampler
from toprovar_compiler.evaluation.table import Table

PROMPTS = 40


def test_a_rival_meets_the_slowest_variant_that_is_no_slower() -> None:
    costs = {"dense": 9.0, "toprovar": 3.0, "toprovar[target_speedup=5]": 2.0, "fastvar": 4.0, "skipvar": 1.0}
    assert matched({**costs, "random": 2.0}) == [
        Pair("fastvar", "toprovar", 4.0, 3.0),
        Pair("skipvar", "toprovar[target_speedup=5]", 1.0, 2.0),
        Pair("random", "toprovar[target_speedup=5]", 2.0, 2.0),
    ]


def test_a_rival_without_a_variant_is_an_error() -> None:
    with pytest.raises(ValueError, match="requires variants of toprovar, got none among: dense, fastvar"):
        matched({"dense": 1.0, "fastvar": 1.0})


def _table(right: float, ssim: float, shift: float) -> Table:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "task": "one",
            "correct": prompt < right * PROMPTS,
            "ssim": ssim,
            "features": (rng.normal(size=3) + shift).tolist(),
        }
        for prompt in range(PROMPTS)
    ]
    return Table([{"pictures": rows}], PROMPTS)


def test_differences_are_ours_minus_the_rivals() -> None:
    ours, rival, true_scenes = _table(0.9, 0.95, 0.1), _table(0.6, 0.9, 2.0), _table(1.0, 1.0, 0.0)
    found = differences(ours, rival, true_scenes, Resampler(PROMPTS, 0))
    assert found["correct"].value == pytest.approx(0.3)
    assert found["ssim"].value == pytest.approx(0.05)
    # equal covariances: the squared distances of the means, 3 x 0.1^2 and 3 x 2^2
    assert found["fid_checker"].value == pytest.approx(0.03 - 12.0)
    for interval in found.values():
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low <= interval.value + 1e-12
        assert interval.value <= interval.high + 1e-12
    same = differences(ours, ours, true_scenes, Resampler(PROMPTS, 0))
    assert {interval.value for interval in same.values()} == {0.0}
