"""The floor under what each tile keeps, against a token-by-token definition."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toprovar_compiler
from tests.toy_generators import ClassVAR, make
from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.policies import make_policy
from toprovar_compiler.policies.base import Dense, Step
from toprovar_compiler.policies.retention import Retention
from toprovar_compiler.policies.tile_floor import TileFloor

gate = torch.ops.toprovar.entropy_gate

# Few values, so that ties are common.
VALUES = st.sampled_from([0.0, 0.5, 1.0, 2.0, -0.0, -1.0, math.inf, -math.inf, math.nan])
SHARES = [Fraction(1, 100), Fraction(1, 10), Fraction(1, 4), Fraction(1, 2), Fraction(1)]


def tiles(grid: int, side: int) -> list[list[int]]:
    """Tokens of a grid x grid map by tile of side x side cells, the last ones cut off."""
    found = defaultdict(list)
    for token in range(grid * grid):
        found[token // grid // side, token % grid // side].append(token)
    return list(found.values())


def expected(row: list[float], keep: int, side: int, share: Fraction) -> list[int]:
    """First the best of each tile, then the best of the rest, one token at a time."""

    def worth(token: int) -> tuple[bool, float, int]:
        known = math.isfinite(row[token])
        return not known, row[token] if known else 0.0, token

    kept: set[int] = set()
    for tile in tiles(math.isqrt(len(row)), side):
        kept.update(sorted(tile, key=worth)[: max(1, math.ceil(share * len(tile)))])
    for token in sorted(range(len(row)), key=worth):
        if len(kept) < keep:
            kept.add(token)
    return sorted(kept)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, Fraction]:
    grid, side, share = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.sampled_from(SHARES))
    tokens = grid * grid
    rows = draw(st.lists(st.lists(VALUES, min_size=tokens, max_size=tokens), min_size=1, max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    least = sum(max(1, math.ceil(share * len(tile))) for tile in tiles(grid, side))
    return torch.tensor(rows, dtype=dtype), draw(st.integers(least, tokens)), side, share


@given(cases())
def test_kept_tokens_are_those_of_the_definition(case: tuple[torch.Tensor, int, int, Fraction]) -> None:
    scores, keep, side, share = case
    order = TileFloor(side, float(share)).order(scores)
    assert (order.dtype, order.shape) == (scores.dtype, scores.shape)
    kept = gate(order, keep).tolist()
    assert kept == [expected(row, keep, side, share) for row in scores.tolist()]


@given(cases())
def test_every_tile_keeps_its_share_and_the_number_of_tokens_is_exact(
    case: tuple[torch.Tensor, int, int, Fraction],
) -> None:
    scores, keep, side, share = case
    for row in gate(TileFloor(side, float(share)).order(scores), keep).tolist():
        assert len(set(row)) == keep
        for tile in tiles(math.isqrt(scores.shape[1]), side):
            assert len(set(tile) & set(row)) >= max(1, share * len(tile))


@given(cases())
def test_least_is_the_smallest_budget_that_has_a_token_for_each_demand(
    case: tuple[torch.Tensor, int, int, Fraction],
) -> None:
    scores, _, side, share = case
    floor = TileFloor(side, float(share))
    least = floor.least(scores.shape[1])
    assert least is not None
    demands = [max(1, math.ceil(share * len(tile))) for tile in tiles(math.isqrt(scores.shape[1]), side)]
    assert least == sum(demands)
    kept = gate(floor.order(scores), least).tolist()
    assert all(
        len(set(tile) & set(row)) == demand
        for row in kept
        for tile, demand in zip(tiles(math.isqrt(scores.shape[1]), side), demands, strict=True)
    )


def test_a_product_that_rounding_lifts_above_a_whole_number_takes_no_token_more() -> None:
    assert 0.07 * 100 > 7
    assert TileFloor(10, 0.07).least(100) == 7


def test_a_floor_of_one_tile_changes_nothing() -> None:
    scores = torch.rand(2, 36, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gate(TileFloor(6, 0.2).order(scores), 9), gate(scores, 9))


def test_nothing_is_read_back_from_the_device() -> None:
    """On the meta device there are no values to read."""
    order = TileFloor(2, 0.5).order(torch.empty(3, 25, device="meta"))
    assert (order.shape, order.device.type) == ((3, 25), "meta")


def test_a_budget_below_the_floor_is_refused_by_name() -> None:
    retention = Retention(Options(tile_floor=(2, 0.5)))
    step = Step(3, 0, 16, 14, 1, 1)
    assert retention.refusal(step, 8) is None
    with pytest.raises(
        OptionError,
        match=r"tile_floor=\(2, 0.5\) requires at least 8 of the 16 tokens of scale 3, got a budget",
    ):
        retention.refusal(step, 7)


@pytest.mark.parametrize("layers", [None, [0.0, 1.0, 0.5]])
def test_it_is_refused_before_anything_runs_if_the_schedule_is_known(layers: Any) -> None:
    """Of 9 tokens 4 are kept, and the floor takes 2, 1, 1 and 1 of its tiles."""
    model = make(ClassVAR)
    options = {"keep_ratio": 0.4, "tile_floor": (2, 0.5), "layer_budgets": layers}
    with pytest.raises(
        OptionError, match=r"at least 5 of the 9 tokens of scale 2, got a budget of 4; choose"
    ):
        toprovar_compiler.compile(model, **options)
    toprovar_compiler.compile(model, **{**options, "tile_floor": (2, 0.25)})


def test_a_grid_that_is_no_square_runs_dense_for_a_counted_reason() -> None:
    policy = make_policy(Options(tile_floor=(2, 0.1), start_scale=1), (1, 8, 18))
    policy.start_generation()
    decision = policy.decide(Step(1, 0, 8, 1, 1, 1), torch.zeros(1, 8, 2))
    assert isinstance(decision, Dense)
    assert decision.fallback == "tile_floor requires a square token grid"
