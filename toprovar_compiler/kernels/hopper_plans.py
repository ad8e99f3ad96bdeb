"""How the Hopper kernel is run on a shape: tile sizes, roles, and parts of the keys. Pure functions."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

ROWS = 64  # queries a warpgroup
# With fewer, most rows of a tile are empty, and the portable kernel has smaller tiles.
LEAST_QUERIES = 32
MOST_SPLITS = 16
# Programs for so much of the multiprocessors fill the GPU.
_FULL = 0.95
_MOST_SHAPES = 4096
# What parts of the keys cost, in tiles of so many numbers (about 0.65 us each on an H100): one more launch,
# each part, and each part's way through memory for 2^20 numbers of output. Then how much longer a tile takes with
# each program more that shares a multiprocessor. Fitted to `python -m benchmarks.attention_splits`.
_TILE = 8192
_LAUNCH, _PART, _WAY, _SHARED = 3.0, 0.5, 7.0, 1.3


class Plan(NamedTuple):
    """Keys a tile, slots of the ring, consumer warpgroups (1 or 2), registers a thread of the second one (the
    first gets what remains), registers a thread at the launch, and programs that share a multiprocessor."""

    keys: int
    stages: int
    warpgroups: int
    registers: int
    launch_registers: int
    resident: int


# head size -> plans; the first whose programs fill the GPU is taken, else the last. None spills registers. At head
# size 64 three programs on a multiprocessor are faster than two consumers that take turns (decision 15).
PLANS: dict[int, tuple[Plan, ...]] = {
    64: (Plan(64, 2, 1, 0, 80, 3), Plan(128, 2, 1, 0, 128, 2)),
    128: (Plan(128, 2, 2, 240, 168, 1), Plan(64, 2, 1, 0, 128, 2)),
}


# The same where there is a bias, for whose values the others have no registers left and spill.
BIASED_PLANS: dict[int, Plan] = {64: Plan(64, 3, 1, 0, 128, 2), 128: Plan(64, 2, 1, 0, 128, 2)}


@lru_cache(_MOST_SHAPES)
def choose(
    heads: int, queries: int, keys: int, size: int, processors: int, biased: bool = False
) -> tuple[Plan, int] | None:
    """The plan and the parts of the keys for `heads` heads in all (B * H) on a GPU of so many multiprocessors.

    None where there is no plan or the portable kernel is faster.
    """
    if size not in PLANS or queries < LEAST_QUERIES:
        return None
    plans = (BIASED_PLANS[size],) if biased else PLANS[size]
    filling = (p for p in plans if programs(p, heads, queries) >= _FULL * processors)
    plan = next(filling, plans[-1])
    if keys < plan.keys:
        return None
    return plan, choose_splits(plan, heads, queries, keys, size, processors)


def choose_splits(plan: Plan, heads: int, queries: int, keys: int, size: int, processors: int) -> int:
    """Parts that the keys are cut into: all run at once, have a tile at least, and are worth joining."""
    whole = programs(plan, heads, queries)
    # With one block of queries a head, reading the keys is what takes the time, and no two read the same.
    resident = plan.resident if whole > heads else 1

    def tiles(splits: int) -> float:
        shared = _SHARED ** (math.ceil(whole * splits / processors) - 1)
        a_part = _PART + _WAY * heads * queries * size / (1 << 20)
        joining = _LAUNCH + splits * a_part if splits > 1 else 0.0
        return math.ceil(keys / (splits * plan.keys)) * (plan.keys * size / _TILE) * shared + joining

    most = min(MOST_SPLITS, processors * resident // whole, keys // plan.keys)
    return min(range(1, most + 1), key=tiles, default=1)


def programs(plan: Plan, heads: int, queries: int) -> int:
    """Programs that take all keys."""
    return blocks(plan, queries) * heads


def blocks(plan: Plan, queries: int) -> int:
    """Programs of one head."""
    return math.ceil(queries / (ROWS * plan.warpgroups))
