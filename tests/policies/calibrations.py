"""Random calibrations, and what their gates predict, term by term in plain Python."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from toprovar_compiler.policies.artifacts import fingerprint, sketch
from toprovar_compiler.policies.calibration import Calibration, Gate, Plan, Rows
from toprovar_compiler.schedule import stated_schedule

PLAN = Plan(2.0, 0.9, (1.0, 1.0, 0.6, 0.4, 0.3))
MILD = Plan(1.25, 0.97, (1.0, 1.0, 1.0, 0.8, 0.5))
STRONG = Plan(3.5, 0.8, (1.0, 1.0, 0.4, 0.2, 0.1))


def gate(layers: int, heads: int, seed: int = 0) -> Gate:
    """Weights of both signs around any centres."""
    draw = random.Random(seed)

    def rows(low: float, high: float) -> Rows:
        return tuple(tuple(draw.uniform(low, high) for _ in range(heads)) for _ in range(layers))

    return Gate(rows(-2.0, 2.0), rows(0.0, 1.0), bias=draw.uniform(-1.0, 1.0), explained=0.25)


def calibration(model: Any, **changes: Any) -> Calibration:
    """Of a model with three layers of four heads and five scales, of which the last three are pruned."""
    schedule = stated_schedule(model)
    assert schedule is not None
    values: dict[str, Any] = {
        "model": type(model).__name__,
        "fingerprint": fingerprint(model),
        "sketch": sketch(model),
        "schedule": schedule,
        "gates": {scale: gate(3, 4, seed=scale) for scale in (1, 2, 3)},
        "plan": PLAN,
        "plans": (MILD, STRONG),
        "record": {"prompts": 3, "ssim": [0.9, 0.8], "model": "tests:toy"},
    }
    return Calibration(**{**values, **changes})


def predicted(made: Gate, maps: Sequence[Tensor], keys: int) -> list[list[float]]:
    """The importance of each sample's tokens, from the entropies [samples, H, n] of each layer."""
    samples, _, tokens = maps[0].shape
    return [[_importance(made, maps, keys, s, token) for token in range(tokens)] for s in range(samples)]


def _importance(made: Gate, maps: Sequence[Tensor], keys: int, sample: int, token: int) -> float:
    found = made.bias
    for weights, centres, entropy in zip(made.weights, made.centre, maps, strict=True):
        for head, (weight, centre) in enumerate(zip(weights, centres, strict=True)):
            share = float(entropy[sample, head, token]) / math.log(keys)
            if math.isfinite(share):
                found += weight * (share - centre)
    return found


def nearest(values: Sequence[float], tokens: int) -> list[float]:
    """Nearest neighbour on square grids, by its definition: cell i of m reads cell floor(i * n / m)."""
    old, new = isqrt(len(values)), isqrt(tokens)
    return [values[(y * old // new) * old + x * old // new] for y in range(new) for x in range(new)]
