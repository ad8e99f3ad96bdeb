"""Budgets, restorations and the decisions made of them."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
import torch
from torch import Tensor

from toprovar_compiler.options import Options
from toprovar_compiler.policies import DensePolicy, ToprovarPolicy, make_policy
from toprovar_compiler.policies.base import Dense, Outcome, Prune, Step
from toprovar_compiler.policies.restoration import Bypass, CachedUpdate, ScaleExit

SCHEDULE = (1, 4, 9, 16, 36)
SAMPLES, HEADS, WIDTH = 2, 3, 3


def _step(scale: int, layer: int = 0, rows_per_sample: int = 1, tokens: int | None = None) -> Step:
    tokens = SCHEDULE[scale] if tokens is None else tokens
    return Step(scale, layer, tokens, sum(SCHEDULE[:scale]), SAMPLES * rows_per_sample, rows_per_sample)


def _stream(step: Step, seed: int = 0) -> Tensor:
    return torch.rand(step.rows, step.tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def _policy(schedule: tuple[int, ...] | None = SCHEDULE, **options: Any) -> ToprovarPolicy:
    policy = make_policy(Options(**options), schedule)
    assert isinstance(policy, ToprovarPolicy)
    return policy


def _run_dense(policy: ToprovarPolicy, scale: int, layers: int = 2, seed: int = 0) -> Tensor:
    """Show the policy a full scale of ``layers`` layers; returns the last entropies [B, H, N]."""
    generator = torch.Generator().manual_seed(seed)
    for layer in range(layers):
        step = _step(scale, layer)
        entropy = torch.rand(step.rows, HEADS, step.tokens, generator=generator)
        policy.observe(step, _outcome(step, entropy))
    return entropy


def _outcome(step: Step, entropy: Tensor | None) -> Outcome:
    """Of a block that ran in full."""
    return Outcome(entropy, None, _stream(step), _stream(step, 1), step.prefix + step.tokens)


def _prune(policy: ToprovarPolicy, step: Step) -> Prune:
    decision = policy.decide(step, _stream(step))
    assert isinstance(decision, Prune)
    return decision


@pytest.mark.parametrize("name", ["dense", "toprovar"])
def test_the_named_policy_is_made(name: Any) -> None:
    assert make_policy(Options(policy=name), None).name == name


def test_dense_prunes_nothing_and_asks_for_no_entropy() -> None:
    assert all(DensePolicy().decide(_step(s), _stream(_step(s))) == Dense() for s in range(5))


@pytest.mark.parametrize(
    ("options", "first"), [({}, 2), ({"start_scale": 0}, 0), ({"start_scale": 1}, 1), ({"start_scale": 4}, 4)]
)
def test_nothing_is_pruned_before_the_start_scale(options: dict[str, Any], first: int) -> None:
    policy, due = _policy(restoration="bypass", entropy_source="same-layer", **options), []
    for scale in range(5):
        decision = policy.decide(_step(scale), _stream(_step(scale)))
        due.append(isinstance(decision, Prune) or decision.fallback is not None)
        _run_dense(policy, scale)
    expected = [scale >= first and scale > 0 for scale in range(5)]
    assert due == expected, "the first scale has one token, of which none can go"


def test_entropy_is_asked_for_from_the_scale_before_the_start() -> None:
    policy = _policy(start_scale=3, keep_ratio=1.0)
    asked = [policy.decide(_step(s), _stream(_step(s))) == Dense(entropy=True) for s in range(5)]
    assert asked == [False, False, True, True, True]


@pytest.mark.parametrize("tokens", [4, 9, 16, 36, 64, 100, 1024])
@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.25, 0.3, 0.5, 0.7, 0.999])
def test_the_budget_is_the_rounded_share_and_at_least_two(tokens: int, ratio: float) -> None:
    policy = _policy((1, 4, 9, tokens), keep_ratio=ratio, start_scale=3)
    _run_dense(policy, 2)
    share = (Decimal(ratio * tokens)).quantize(Decimal(1), ROUND_HALF_EVEN)
    expected = max(2, int(share))
    decision = policy.decide(_step(3, tokens=tokens), torch.zeros(SAMPLES, tokens, WIDTH))
    keep = decision.keep if isinstance(decision, Prune) else tokens
    assert keep == min(expected, tokens)


def test_keep_ratio_may_differ_by_scale() -> None:
    policy = _policy(keep_ratio=[1, 1, 1, 0.25, 0.5], start_scale=1)
    _run_dense(policy, 2)
    assert _prune(policy, _step(3)).keep == 4
    _run_dense(policy, 3)
    assert _prune(policy, _step(4)).keep == 18


@pytest.mark.parametrize(("budget", "keep"), [(0.0, None), (0.5, 10), (1.0, 4)])
def test_a_layers_budget_moves_between_full_and_keep_ratio(budget: float, keep: int | None) -> None:
    """K = (1 - R (1 - keep_ratio)) N, eq. 4's R: 0 is Global and runs in full, 1 is Detail."""
    policy = _policy(
        keep_ratio=0.25,
        start_scale=3,
        restoration="bypass",
        entropy_source="same-layer",
        layer_budgets=[budget, 1],
    )
    _run_dense(policy, 2)
    decision = policy.decide(_step(3), _stream(_step(3)))
    assert (decision.keep if isinstance(decision, Prune) else None) == keep


def test_two_tokens_cannot_be_pruned() -> None:
    policy = _policy((1, 2), start_scale=1, keep_ratio=0.1)
    assert policy.decide(_step(1, tokens=2), torch.zeros(SAMPLES, 2, WIDTH)) == Dense(entropy=True)


def test_without_a_map_pruning_that_was_due_is_a_fallback() -> None:
    decision = _policy(start_scale=3).decide(_step(3), _stream(_step(3)))
    assert isinstance(decision, Dense)
    assert decision.fallback is not None
    assert "no entropy map" in decision.fallback


def test_the_first_layer_of_last_full_layer_runs_in_full_without_being_a_fallback() -> None:
    policy = _policy(start_scale=3, restoration="bypass", entropy_source="last-full-layer")
    assert policy.decide(_step(3), _stream(_step(3))) == Dense(entropy=True)


def test_scale_exit_keeps_the_lowest_entropies_in_token_order() -> None:
    policy = _policy(start_scale=3, keep_ratio=0.25)
    entropy = torch.tensor([[4.0, 0.0, 3, 3, 3, 3, 3, 3, 1], [0, 9, 9, 9, 1, 9, 9, 9, 9]])
    # Two heads of which neither has this order; their mean has.
    tilt = torch.arange(9.0)
    policy.observe(_step(2), _outcome(_step(2), torch.stack([entropy - tilt, entropy + tilt], 1)))
    choice = _prune(policy, _step(3)).choice
    assert choice is not None
    # A 4x4 grid reads rows and columns 0, 0, 1, 2 of the 3x3 map. First sample: cell 1 is read by tokens 2
    # and 6, cell 8 by 15, and of the tie behind them token 3 comes first. Second: cell 0 is read by four.
    assert choice.kept.tolist() == [[2, 3, 6, 15], [0, 1, 4, 5]]


def test_scale_exit_makes_one_choice_for_all_layers_and_rows_of_a_scale() -> None:
    policy = _policy(start_scale=3, keep_ratio=0.25)
    _run_dense(policy, 2)
    first = _prune(policy, _step(3, 0, rows_per_sample=2)).choice
    second = _prune(policy, _step(3, 1, rows_per_sample=2)).choice
    assert first is not None
    assert second is first
    assert torch.equal(first.kept_of_rows, torch.cat((first.kept, first.kept)))


def test_scale_exit_chooses_anew_at_every_scale_and_generation() -> None:
    policy = _policy(start_scale=3, keep_ratio=0.25)
    _run_dense(policy, 2)
    first = _prune(policy, _step(3)).choice
    policy.start_generation()
    _run_dense(policy, 2, seed=5)
    again = _prune(policy, _step(3)).choice
    _run_dense(policy, 3, seed=6)
    third = _prune(policy, _step(4)).choice
    assert first is not None
    assert again is not None
    assert third is not None
    assert not torch.equal(first.kept, again.kept)
    assert third.kept.shape == (SAMPLES, 9)


def test_bypass_leaves_the_choice_to_the_graphs_gate() -> None:
    policy = _policy(start_scale=3, restoration="bypass", entropy_source="same-layer")
    _run_dense(policy, 2)
    decision = _prune(policy, _step(3))
    assert decision.choice is None
    assert decision.entropy is not None
    assert decision.entropy.shape == (SAMPLES, 16)


@pytest.mark.parametrize("restoration", [Bypass(), ScaleExit()])
def test_bypass_and_exit_pass_the_stream_through(restoration: Bypass) -> None:
    stream = _stream(_step(3))
    assert restoration.base(_step(3), stream) is stream


def test_only_scale_exit_exits_scales() -> None:
    assert [kind.exits_scales for kind in (Bypass, ScaleExit, CachedUpdate)] == [False, True, False]


def test_cached_update_adds_what_the_layer_added_at_the_previous_scale() -> None:
    restoration, before = CachedUpdate(3), _step(2, layer=1)
    x, y = _stream(before), _stream(before, 1)
    restoration.observe(before, _outcome(before, None))
    stream = _stream(_step(3, layer=1))
    base = restoration.base(_step(3, layer=1), stream)
    assert base is not None
    for token in range(16):
        source = (token // 4 * 3 // 4) * 3 + token % 4 * 3 // 4
        expected = stream[:, token] + (y - x)[:, source]
        torch.testing.assert_close(base[:, token], expected, rtol=0, atol=0)


def test_cached_update_is_the_layers_own_and_of_this_generation() -> None:
    restoration, before = CachedUpdate(3), _step(2, layer=1)
    restoration.observe(before, _outcome(before, None))
    assert restoration.base(_step(3, layer=0), _stream(_step(3))) is None
    restoration.start_generation()
    assert restoration.base(_step(3, layer=1), _stream(_step(3))) is None


def test_cached_update_holds_no_stream_that_no_pruned_scale_needs() -> None:
    restoration, early = CachedUpdate(4), _step(2)
    restoration.observe(early, _outcome(early, None))
    assert restoration.base(_step(3), _stream(_step(3))) is None
