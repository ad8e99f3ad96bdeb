"""Confidence intervals: the same prompts drawn again and again, alike for every policy and metric."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and its interval; or no value, and the reason. A bound that is None has no finite value."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return numbers if self.reason is None else {**numbers, "reason": self.reason}


def missing(reason: str) -> Interval:
    """In place of a metric that was not computed."""
    return Interval(None, reason=reason)


class Resampler:
    """Draws whole prompts, with all their samples, with replacement: pictures of one prompt are alike.

    Attributes:
        counts: [RESAMPLES, prompts], how often each prompt was drawn.
    """

    def __init__(self, prompts: int, seed: int) -> None:
        draws = np.random.default_rng(seed).integers(0, prompts, size=(RESAMPLES, prompts))
        self._draws = draws
        self.counts: Floats = np.stack([np.bincount(row, minlength=prompts) for row in draws]).astype(float)

    def ratio(self, parts: Floats, wholes: Floats) -> Interval:
        """Sum of ``parts`` over sum of ``wholes``, each [prompts]: a mean, a share, a factor.

        Resamples in which all ``wholes`` are 0 (a task that was not drawn) do not count.
        """
        whole = float(wholes.sum())
        if whole == 0:
            return missing("no picture has it")
        return _interval(float(parts.sum()) / whole, self._ratios(parts, wholes))

    def difference(self, parts: Floats, others: Floats, wholes: Floats) -> Interval:
        """Of two ratios with the same ``wholes``, drawn together."""
        return self.ratio(parts - others, wholes)

    def psnr(self, squares: Floats, wholes: Floats) -> Interval:
        """-10 log10 of a ratio of squared errors, in dB, for pictures in [0, 1]."""
        error = self.ratio(squares, wholes)
        if error.value is None:
            return error
        if error.value == 0:
            return missing("every picture equals the dense one")
        # the larger the error, the lower the ratio of signal to noise
        return Interval(_decibels(error.value), _decibels(error.high), _decibels(error.low))

    def median(self, values: Floats) -> Interval:
        """Of one value per prompt, [prompts]."""
        return _interval(float(np.median(values)), np.median(values[self._draws], axis=1))

    def centred(self, value: float, drawn: Floats) -> Interval:
        """For a metric that is biased by the number of different pictures, as Frechet's distance is.

        A resample has fewer different ones, so its distances are larger throughout: their spread around
        their own median is laid around the value.

        Args:
            value: of all prompts once.
            drawn: [RESAMPLES], of each resample.
        """
        low, high = np.quantile(drawn - np.median(drawn), _TAILS)
        return Interval(value, max(0.0, value + float(low)), value + float(high))

    def _ratios(self, parts: Floats, wholes: Floats) -> Floats:
        sums = self.counts @ wholes
        drawn = sums > 0
        return (self.counts @ parts)[drawn] / sums[drawn]


def per_prompt(prompts: int, of: NDArray[np.int64], values: Floats) -> Floats:
    """Sums [prompts] of ``values`` [N] over the pictures of each prompt, ``of`` [N] being theirs."""
    return np.bincount(of, weights=values, minlength=prompts).astype(np.float64)


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, _TAILS)
    return Interval(value, float(low), float(high))


def _decibels(error: float | None) -> float | None:
    return None if not error else -10 * math.log10(error)
