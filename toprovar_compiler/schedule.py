"""The scales of a model: how many there are, and the token grid of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

# Attribute names under which public models state the side length of each scale's token grid.
_SCHEDULE_ATTRIBUTES = ("patch_nums", "scale_schedule")

LATE_SCALES = 3
LATE_TOKENS = 256


def schedule_attribute(model: nn.Module) -> str | None:
    """The name of the attribute that states the side length of each scale, or None."""
    for name in _SCHEDULE_ATTRIBUTES:
        sides = getattr(model, name, None)
        if isinstance(sides, Sequence) and sides and all(type(n) is int and n > 0 for n in sides):
            return name
    return None


def stated_schedule(model: nn.Module) -> tuple[int, ...] | None:
    """Tokens of each scale as the model states them (``patch_nums`` of side lengths), or None."""
    name = schedule_attribute(model)
    return None if name is None else tuple(n * n for n in getattr(model, name))


def grid_of(tokens: int) -> tuple[int, int] | None:
    """Height and width of a square token grid; None if the number of tokens is no square."""
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else None
