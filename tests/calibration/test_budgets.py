"""FLOPs of a budget against direct sums and the real counters; plans against all combinations."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

import toprovar_compiler
from tests import painters
from tests.toy_generators import ClassVAR, TextVAR, make
from toprovar_compiler.api import _find
from toprovar_compiler.calibration.budgets import (
    MOST_SCALES,
    RATIOS,
    STRENGTHS,
    FlopsModel,
    Planner,
    scales_worth_pruning,
)
from toprovar_compiler.errors import OptionError, UnsupportedModelError
from toprovar_compiler.policies.calibration import Plan

SCHEDULES = ((1, 4, 16), (1, 4, 9, 16, 36), (1, 4, 16, 36, 64, 144, 256, 400, 576, 1024, 1600, 2304, 4096))
COSTS = (147456, 196608, 1536)
SCHEDULE = (1, 4, 16, 36, 64)
FLOPS = FlopsModel(SCHEDULE, 12_000.0, 25_000.0, 130.0)
NO_END: Mapping[int, float] = {}
ENDS = (NO_END, {4: 0.011}, {3: 0.037, 4: 0.013})


def _spent(tokens: Sequence[int], costs: Sequence[float] = COSTS) -> list[float]:
    """FLOPs of each scale: what it costs, what each of its tokens does, and each key of each token."""
    each, per_token, per_key = costs
    found = []
    for scale, count in enumerate(tokens):
        keys = sum(tokens[: scale + 1])
        found.append(each + sum(per_token + per_key * keys for _ in range(count)))
    return found


def _times_fewer(flops: FlopsModel, keep_ratio: Sequence[float]) -> float:
    costs = flops.per_scale, flops.per_token, flops.per_key
    kept = [round(tokens * ratio) for tokens, ratio in zip(flops.schedule, keep_ratio, strict=True)]
    return sum(_spent(flops.schedule, costs)) / sum(_spent(kept, costs))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=len)
def test_the_coefficients_are_found_again(schedule: tuple[int, ...]) -> None:
    found = FlopsModel.of(schedule, {scale: int(f) for scale, f in enumerate(_spent(schedule))})
    assert found.schedule == schedule
    assert (found.per_scale, found.per_token, found.per_key) == pytest.approx(COSTS, rel=1e-9)


def test_the_coefficients_of_the_same_flops_are_the_same_numbers() -> None:
    """A calibration says the same of the same pictures, whatever lay in memory before."""
    spent = {0: 3049472, 1: 5939200, 2: 17989632, 3: 74055680}
    kept, found = [], set()
    for size in range(100):
        kept.append(torch.empty(8 * size + 1))
        found.add(FlopsModel.of((1, 4, 16, 64), spent))
    assert len(found) == 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=len)
def test_times_fewer_is_the_ratio_of_direct_sums(schedule: tuple[int, ...]) -> None:
    flops, draw = FlopsModel(schedule, *map(float, COSTS)), random.Random(0)
    assert flops.times_fewer([1.0] * len(schedule)) == 1
    assert flops.total([1.0] * len(schedule)) == sum(_spent(schedule))
    for _ in range(5):
        keep = [1.0, *(draw.choice((1.0, *RATIOS)) for _ in schedule[1:])]
        assert flops.times_fewer(keep) == pytest.approx(_times_fewer(flops, keep), rel=1e-12)


def _guided(model: Any) -> None:
    model.autoregressive_infer_cfg(torch.tensor([3, 1, 4]))


def _worded(model: Any) -> None:
    model.paint(torch.tensor([[1, 2, 3], [4, 5, 6]]))


def _prompted(model: Any) -> None:
    model.generate(["a cat", "two apples"], seed=0)


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, tuple[Any, Callable[[Any], None], tuple[int, ...]]]]:
    """Class-conditional, text by cross-attention, and the embedded one; how they paint; their schedules."""
    embedded = painters.small(torch.device("cpu"), torch.float32)
    found: dict[str, tuple[Any, Callable[[Any], None], tuple[int, ...]]] = {
        "class": (make(ClassVAR), _guided, (1, 4, 9, 16, 36)),
        "text": (make(TextVAR, sides=(1, 2, 4, 6, 8)), _worded, (1, 4, 16, 36, 64)),
        "embedded": (embedded, _prompted, (1, 4, 16, 64)),
    }
    yield found
    for model, _, _ in found.values():
        with contextlib.suppress(UnsupportedModelError):  # not every process compiles all of them
            toprovar_compiler.restore(model)


@pytest.mark.parametrize("name", ["class", "text", "embedded"])
def test_times_fewer_is_what_the_counters_say(name: str, models: dict[str, Any]) -> None:
    model, paint, schedule = models[name]
    paint(toprovar_compiler.compile(model, policy="dense"))
    spent: dict[int, int] = dict.fromkeys(range(len(schedule)), 0)
    for (scale, _), work in _find(model).session.counters.work.items():
        assert work.flops_computed == work.flops_total
        spent[scale] += work.flops_total
    flops = FlopsModel.of(schedule, spent)
    for last in ((1.0, 0.1), (0.5, 1.0), (0.75, 0.35), (0.25, 0.15)):
        keep = (1.0,) * (len(schedule) - 2) + last
        start = len(schedule) - (2 if last[0] < 1 else 1)
        paint(toprovar_compiler.compile(model, keep_ratio=keep, start_scale=start, strict=True))
        total = _find(model).session.counters.total()
        assert total.flops_total == sum(spent.values())
        assert flops.times_fewer(keep) == pytest.approx(total.flops_total / total.flops_computed, rel=1e-9)
    if name != "text":  # which has no guidance
        keep, until = (1.0,) * (len(schedule) - 2) + (0.5, 0.25), len(schedule) - 2
        options = {"keep_ratio": keep, "start_scale": until, "guidance_until": until, "strict": True}
        paint(toprovar_compiler.compile(model, **options))
        total = _find(model).session.counters.total()
        expected = pytest.approx(total.flops_total / total.flops_computed, rel=1e-9)
        assert flops.times_fewer(keep, until) == expected


def _damage(scales: Sequence[int], seed: int = 0) -> dict[tuple[int, float], float]:
    """More where less is kept, with exceptions."""
    draw = random.Random(seed)
    return {(s, ratio): draw.uniform(0.5, 1.5) * (1 - ratio) * 0.4 for s in scales for ratio in RATIOS}


def _all_plans(
    flops: FlopsModel, damage: dict[tuple[int, float], float], ended: Mapping[int, float] = NO_END
) -> list[Plan]:
    """Every choice for the scales 3 and 4, each with every end of guidance."""
    found = []
    for third, fourth in itertools.product((1.0, *RATIOS), repeat=2):
        harm = damage.get((3, third), 0.0) + damage.get((4, fourth), 0.0)
        keep = (1.0, 1.0, 1.0, third, fourth)
        found.append(Plan(_times_fewer(flops, keep), 1 - harm, keep))
        costs = flops.per_scale, flops.per_token, flops.per_key
        spent = _spent([round(n * ratio) for n, ratio in zip(flops.schedule, keep, strict=True)], costs)
        dense = sum(_spent(flops.schedule, costs))
        if 4 in ended:
            times = dense / (sum(spent[:4]) + spent[4] / 2)
            found.append(Plan(times, 1 - harm - fourth * ended[4], keep, 4))
        if 3 in ended:
            times = dense / (sum(spent[:3]) + spent[3] / 2 + spent[4] / 2)
            lost = third * (ended[3] - ended.get(4, 0.0)) + fourth * ended.get(4, 0.0)
            found.append(Plan(times, 1 - harm - lost, keep, 3))
    assert len({plan.ssim for plan in found}) == len(found), "no ties"
    return found


def _assert_is(plan: Plan, expected: Plan) -> None:
    assert (plan.keep_ratio, plan.guidance_until) == (expected.keep_ratio, expected.guidance_until)
    assert (plan.times_fewer, plan.ssim) == pytest.approx((expected.times_fewer, expected.ssim), rel=1e-12)


@pytest.mark.parametrize("ended", ENDS, ids=len)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("target", [1.0, 1.01, 1.7, 2.5, 3.9])
def test_the_best_plan_is_the_least_harm_of_all_that_are_fast_enough(
    target: float, seed: int, ended: Mapping[int, float]
) -> None:
    damage = _damage((3, 4), seed)
    fast = [plan for plan in _all_plans(FLOPS, damage, ended) if plan.times_fewer >= target]
    _assert_is(Planner(FLOPS, damage, ended).best(target), max(fast, key=lambda plan: plan.ssim))


@pytest.mark.parametrize("ended", ENDS, ids=len)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("least", [-1.0, 0.5, 0.8, 0.95, 1.0])
def test_the_fastest_plan_is_that_of_all_that_are_alike_enough(
    least: float, seed: int, ended: Mapping[int, float]
) -> None:
    damage = _damage((3, 4), seed)
    alike = [plan for plan in _all_plans(FLOPS, damage, ended) if plan.ssim >= least]
    _assert_is(Planner(FLOPS, damage, ended).fastest(least), max(alike, key=lambda plan: plan.times_fewer))


def test_the_menu_has_the_best_plan_of_each_strength_that_can_be_reached() -> None:
    damage = _damage((3, 4))
    plans = _all_plans(FLOPS, damage)
    expected = []
    for strength in STRENGTHS:
        fast = [plan for plan in plans if plan.times_fewer >= strength]
        expected += [max(fast, key=lambda plan: plan.ssim)] if fast else []
    menu = Planner(FLOPS, damage).menu()
    assert 3 < len(expected) < len(STRENGTHS)
    expected = list(dict.fromkeys(expected))  # a plan that is the best of two strengths is listed once
    for plan, wanted in zip(menu, expected, strict=True):
        _assert_is(plan, wanted)


def test_plans_prune_the_scales_that_were_tried_alone() -> None:
    damage = _damage((4,))
    most = _times_fewer(FLOPS, (1.0, 1.0, 1.0, 1.0, 0.1))
    assert Planner(FLOPS, damage).best(most * (1 - 1e-12)).keep_ratio == (1.0, 1.0, 1.0, 1.0, 0.1)
    dense = Planner(FLOPS, {}).best(1.0)
    assert (dense.keep_ratio, dense.times_fewer, dense.ssim) == ((1.0,) * 5, 1.0, 1.0)
    assert Planner(FLOPS, {}).menu() == ()


@pytest.mark.parametrize("per_token", [25_000.0, 27_000.0])
def test_a_speedup_out_of_reach_is_refused_with_the_largest_that_is_not(per_token: float) -> None:
    flops, damage = FlopsModel(SCHEDULE, 500_000.0, per_token, 130.0), _damage((3, 4))
    most = _times_fewer(flops, (1.0, 1.0, 1.0, 0.1, 0.1))
    with pytest.raises(OptionError, match="requires at most .* got 60; ask for less") as error:
        Planner(flops, damage).best(60)
    named = float(re.findall("at most ([0-9.]+)", str(error.value))[0])
    assert named == pytest.approx(most, abs=0.01)
    found = Planner(flops, damage).best(named)
    assert found.times_fewer == pytest.approx(most, rel=1e-12), "what it names can be had"


def test_scales_are_worth_pruning_that_a_gate_ranks_and_that_cost_something() -> None:
    flops = FlopsModel((1, 4, 16, 64, 256), 12_000.0, 25_000.0, 130.0)
    assert scales_worth_pruning(flops, dict.fromkeys(range(4))) == [2, 3, 4], "scale 1 has 1 % of the FLOPs"
    assert scales_worth_pruning(flops, {0: None, 2: None}) == [3]
    assert scales_worth_pruning(flops, {3: None}) == [4]
    assert scales_worth_pruning(flops, {4: None}) == []
    assert scales_worth_pruning(flops, {}) == []


def test_of_many_scales_the_last_are_worth_pruning() -> None:
    flops = FlopsModel((1, *[64] * 9), 12_000.0, 25_000.0, 130.0)
    assert MOST_SCALES == 6
    assert scales_worth_pruning(flops, dict.fromkeys(range(9))) == [4, 5, 6, 7, 8, 9]
    assert scales_worth_pruning(flops, dict.fromkeys(range(5))) == [1, 2, 3, 4, 5]
