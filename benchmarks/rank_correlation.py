"""Spearman's rank correlation over layers: how sure it is, over prompts and against chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from toprovar_compiler.evaluation.bootstrap import LEVEL, RESAMPLES

Floats = NDArray[np.float64]
PERMUTATIONS = 10_000


def ranks(values: Floats) -> Floats:
    """Ranks along the last axis, from 0; equal values share the mean of theirs."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    shared: Floats = below + (equal - 1) / 2
    return shared


def spearman(first: Floats, second: Floats) -> Floats:
    """Correlation of the ranks of ``[..., L]`` values, -1 to 1; 0 where one of the two has no order."""
    rho: Floats = (_standardised(ranks(first)) * _standardised(ranks(second))).sum(-1)
    return rho


def over_prompts(statistic: Floats, damage: Floats, seed: int) -> dict[str, float]:
    """The correlation "rho" of two means over prompts, and "low" and "high" of its bootstrap interval.

    Args:
        statistic: [prompts, L], of some prompts.
        damage: [other prompts, L]; both sets are drawn again, each for itself.
    """
    rng = np.random.default_rng(seed)
    first, second = (_resampled_means(values, rng) for values in (statistic, damage))
    low, high = np.quantile(spearman(first, second), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    rho = spearman(statistic.mean(0), damage.mean(0))
    return {"rho": float(rho), "low": float(low), "high": float(high)}


def against_chance(statistics: Floats, damage: Floats, seed: int) -> tuple[Floats, Floats]:
    """How often layers in random order correlate with the damage [L] as strongly as each statistic [S, L].

    Returns:
        p [S] of each statistic for itself; and [S] of the strongest of all S in a random order, which is
        what to look at when many were tried.
    """
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(damage, (PERMUTATIONS, 1)), axis=1)
    reached = np.abs(_standardised(ranks(statistics)) @ _standardised(ranks(orders)).T)  # [S, PERMUTATIONS]
    found = np.abs(spearman(statistics, damage))[:, None] - 1e-12  # sums of equal ranks may round apart
    alone = (1 + (reached >= found).sum(1)) / (1 + PERMUTATIONS)
    strongest = (1 + (reached.max(0) >= found).sum(1)) / (1 + PERMUTATIONS)
    return alone, strongest


def _standardised(values: Floats) -> Floats:
    """Less their mean and of length 1 along the last axis; zeros where all are equal."""
    centred = values - values.mean(-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    unit: Floats = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return unit


def _resampled_means(values: Floats, rng: np.random.Generator) -> Floats:
    """[RESAMPLES, L] of values [prompts, L]."""
    draws = rng.integers(0, len(values), size=(RESAMPLES, len(values)))
    means: Floats = values[draws].mean(1)
    return means
