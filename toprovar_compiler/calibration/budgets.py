"""Chooses how many tokens each scale keeps: the least damage for a given number of FLOPs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from toprovar_compiler.errors import OptionError, UnsupportedModelError
from toprovar_compiler.policies.calibration import Plan

RATIOS = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1)
"""Keep ratios that are tried."""
STRENGTHS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
"""How many times fewer FLOPs a calibration has plans for, as far as its scales allow."""
MOST_SCALES = 6
_LEAST_SHARE = 0.02
_COEFFICIENTS = 3
_NO_ENDS: Mapping[int, float] = {}

Damage = Mapping[tuple[int, float], float]
"""(scale, keep ratio) -> 1 - SSIM to the dense picture where that scale alone is pruned so."""


@dataclass(frozen=True)
class FlopsModel:
    """FLOPs of a generation: each scale costs ``per_scale`` (projections of the prompt, say), each token
    ``per_token``, and ``per_key`` for each key that it attends to.

    Attributes:
        schedule: tokens of each scale.
    """

    schedule: tuple[int, ...]
    per_scale: float
    per_token: float
    per_key: float

    @classmethod
    def of(cls, schedule: Sequence[int], flops: Mapping[int, int]) -> FlopsModel:
        """From the dense FLOPs of each scale.

        Raises:
            UnsupportedModelError: fewer than three scales were counted.
        """
        if len(flops) < _COEFFICIENTS:
            raise UnsupportedModelError(
                f"calibration requires a model of which at least {_COEFFICIENTS} scales run compiled, got "
                f"{len(flops)}; toprovar_compiler.summary() says why"
            )
        keys = list(itertools.accumulate(schedule))
        rows = [(1, schedule[s], schedule[s] * keys[s]) for s in sorted(flops)]
        costs = [flops[s] for s in sorted(flops)]
        # Exact: a plan must not depend on how a library rounds.
        normal = [
            [sum(row[i] * row[j] for row in rows) for j in range(_COEFFICIENTS)] for i in range(_COEFFICIENTS)
        ]
        right = [
            sum(row[i] * cost for row, cost in zip(rows, costs, strict=True)) for i in range(_COEFFICIENTS)
        ]
        return cls(tuple(schedule), *(float(found) for found in _solve(normal, right)))

    def of_scales(self, keep_ratio: Sequence[float]) -> list[float]:
        """Of each scale of a generation, where pruned tokens leave no keys."""
        found, keys = [], 0
        for tokens, ratio in zip(self.schedule, keep_ratio, strict=True):
            kept = round(tokens * ratio)
            keys += kept
            found.append(self.per_scale + kept * (self.per_token + self.per_key * keys))
        return found

    def total(self, keep_ratio: Sequence[float], guidance_until: int | None = None) -> float:
        """Of a whole generation; where guidance has ended, half of the rows run."""
        return _sum_until(self.of_scales(keep_ratio), guidance_until)

    def times_fewer(self, keep_ratio: Sequence[float], guidance_until: int | None = None) -> float:
        """Than those of a dense generation."""
        return self.total([1.0] * len(self.schedule)) / self.total(keep_ratio, guidance_until)


def _sum_until(of_scales: Sequence[float], guidance_until: int | None) -> float:
    if guidance_until is None:
        return sum(of_scales)
    return sum(of_scales[:guidance_until]) + sum(of_scales[guidance_until:]) / 2


def _solve(matrix: Sequence[Sequence[int]], right: Sequence[int]) -> list[Fraction]:
    """By Cramer's rule, 3 x 3."""
    whole = _determinant(matrix)
    columns = range(len(matrix))
    return [
        Fraction(
            _determinant([[right[i] if j == k else matrix[i][j] for j in columns] for i in columns]), whole
        )
        for k in columns
    ]


def _determinant(matrix: Sequence[Sequence[int]]) -> int:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def scales_worth_pruning(flops: FlopsModel, gates: Mapping[int, object]) -> list[int]:
    """Scales that a gate ranks and that hold at least 2 % of the FLOPs; the last six of them."""
    dense = [1.0] * len(flops.schedule)
    found = []
    for scale, tokens in enumerate(flops.schedule):
        without = [*dense[:scale], 1 / tokens, *dense[scale + 1 :]]
        if scale - 1 in gates and 1 - flops.total(without) / flops.total(dense) >= _LEAST_SHARE:
            found.append(scale)
    return found[-MOST_SCALES:]


class Planner:
    """All combinations of what was tried; the damage of one is the sum of its parts'.

    Args:
        flops: of the model.
        damage: of every ratio in :data:`RATIOS` at every scale that may be pruned.
        ended: scale -> 1 - SSIM where all tokens run and guidance ends at that scale; empty for a model
            whose guidance cannot be ended. Of a scale's share, only what is kept of its tokens counts: to
            the others it makes no difference how they would have been guided.
    """

    def __init__(self, flops: FlopsModel, damage: Damage, ended: Mapping[int, float] = _NO_ENDS) -> None:
        scales = sorted({scale for scale, _ in damage})
        dense = flops.total([1.0] * len(flops.schedule))
        unguided = _of_each(ended)
        made: list[tuple[float, float, tuple[float, ...], int | None]] = []
        for ratios in itertools.product((1.0, *RATIOS), repeat=len(scales)):
            chosen = dict(zip(scales, ratios, strict=True))
            keep = tuple(chosen.get(scale, 1.0) for scale in range(len(flops.schedule)))
            harm = sum(damage[scale, ratio] for scale, ratio in chosen.items() if ratio < 1)
            spent = flops.of_scales(keep)
            for until in (None, *ended):
                without = {} if until is None else {s: lost for s, lost in unguided.items() if s >= until}
                lost = harm + sum(keep[scale] * share for scale, share in without.items())
                made.append((dense / _sum_until(spent, until), 1 - lost, keep, until))
        self._front = _front(made)
        """From strong to mild: no plan has both fewer FLOPs and a higher SSIM than one of these."""

    def fastest(self, least_ssim: float) -> Plan:
        """The plan of fewest FLOPs whose expected SSIM is at least that; the mildest where none has it."""
        return next((plan for plan in self._front if plan.ssim >= least_ssim), self._front[-1])

    def best(self, times_fewer: float) -> Plan:
        """The plan of the highest expected SSIM among those with at least so many times fewer FLOPs.

        Raises:
            OptionError: no plan has so few.
        """
        found = [plan for plan in self._front if plan.times_fewer >= times_fewer]
        if not found:
            most = math.floor(100 * self._front[0].times_fewer) / 100
            raise OptionError(
                f"--target-speedup requires at most {most} for this model's schedule, got {times_fewer}; "
                "ask for less"
            )
        return found[-1]

    def menu(self) -> tuple[Plan, ...]:
        """The best plan of each of :data:`STRENGTHS` that the scales allow."""
        most = self._front[0].times_fewer
        return tuple(dict.fromkeys(self.best(strength) for strength in STRENGTHS if strength <= most))


def _of_each(ended: Mapping[int, float]) -> dict[int, float]:
    """What it costs that a scale has no guidance, from what it costs to end it there and later."""
    later = dict(itertools.pairwise(sorted(ended)))
    return {scale: ended[scale] - ended.get(later.get(scale, -1), 0.0) for scale in ended}


def _front(made: Sequence[tuple[float, float, tuple[float, ...], int | None]]) -> list[Plan]:
    found: list[Plan] = []
    for plan in sorted(made, key=lambda plan: plan[:2], reverse=True):
        if not found or plan[1] > found[-1].ssim:
            found.append(Plan(*plan))
    return found
