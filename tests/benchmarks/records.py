"""Records of the attention benchmark with made-up times."""

from __future__ import annotations

from typing import Any

from benchmarks.attention_report import with_rates
from benchmarks.attention_shapes import Shape
from benchmarks.graphs import STATES

SHAPE: Shape = (2, 16, 64, 128, 64)


def times(seconds: float) -> dict[str, Any]:
    return {"median": seconds, "quartiles": [0.9 * seconds, 1.1 * seconds]}


def result(
    seconds: dict[str, float],
    shape: Shape = SHAPE,
    peak: float | None = None,
    refused: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A record of a shape with the same times in both states of the L2 cache."""
    rated = {name: with_rates(shape, times(taken), peak) for name, taken in seconds.items()}
    return {"shape": shape, "refused": refused or {}, **dict.fromkeys(STATES, rated)}
