"""The importance that a gate predicts, against its formula in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.policies.calibrations import gate, nearest, predicted
from toprovar_compiler.api import policy_of
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Dense, Outcome, Prune, Step
from toprovar_compiler.policies.calibrated_entropy import CalibratedEntropy
from toprovar_compiler.policies.rankings import InvertedPolicy
from toprovar_compiler.policies.toprovar import ToprovarPolicy

SCHEDULE = (1, 4, 9, 16, 25, 36)
SAMPLES, LAYERS, HEADS = 2, 3, 4
GATES = {scale: gate(LAYERS, HEADS, seed=scale) for scale in range(5)}
# Scores are rounded to float32 once; what is rounded is computed in float64.
ROUNDED = {"rtol": 2 * torch.finfo(torch.float32).eps, "atol": 1e-12}


def _step(scale: int, layer: int = 0, rows_per_sample: int = 1, samples: int = SAMPLES) -> Step:
    tokens, prefix = SCHEDULE[scale], sum(SCHEDULE[:scale])
    return Step(scale, layer, tokens, prefix, samples * rows_per_sample, rows_per_sample)


def _maps(
    tokens: int, seed: int = 0, rows: int = SAMPLES, layers: int = LAYERS, heads: int = HEADS
) -> list[Tensor]:
    """Entropies [rows, H, tokens] of each layer."""
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.rand(rows, heads, tokens, generator=generator).double() for _ in range(layers)]


def _outcome(entropy: Tensor | None, keys: int, kept: Tensor | None = None) -> Outcome:
    return Outcome(entropy, kept, torch.empty(0), torch.empty(0), keys)


def _show(
    source: Any, scale: int, maps: Sequence[Tensor], keys: int = 20, kept: Tensor | None = None
) -> None:
    for layer, entropy in enumerate(maps):
        source.observe(_step(scale, layer, samples=len(entropy)), _outcome(entropy, keys, kept))


def _scores(source: Any, step: Step) -> Tensor:
    scores = source.scores(step)
    assert scores is not None
    assert scores.dtype == torch.float32
    assert scores.shape == (step.samples, step.tokens)
    return scores


def _assert_ranks(scores: Tensor, importance: list[list[float]], **tolerance: float) -> None:
    """The scores are the importance with its sign changed, resized."""
    expected = torch.tensor([nearest(row, scores.shape[1]) for row in importance], dtype=torch.float64)
    torch.testing.assert_close(scores.double(), -expected, **(tolerance or ROUNDED))


def _kept(scale: int, count: int, seed: int = 0) -> Tensor:
    """[samples, count]: other places in each sample, ascending."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(SCHEDULE[scale], generator=generator)[:count] for _ in range(SAMPLES)]
    return torch.stack(rows).sort(1).values


@pytest.mark.parametrize(("scale", "keys"), [(1, 5), (2, 14), (3, 30), (4, 20)])
def test_scores_are_the_importance_that_the_previous_scales_gate_predicts(scale: int, keys: int) -> None:
    source, maps = CalibratedEntropy(GATES), _maps(SCHEDULE[scale], seed=scale)
    _show(source, scale, maps, keys)
    _assert_ranks(_scores(source, _step(scale + 1)), predicted(GATES[scale], maps, keys))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_dtype_of_entropies_and_one_layer_of_one_head(dtype: torch.dtype) -> None:
    made = gate(1, 1)
    source, maps = CalibratedEntropy({2: made}), [entropy.to(dtype) for entropy in _maps(9, 1, 3, 1, 1)]
    _show(source, 2, maps)
    # Dividing by the logarithm rounds to the entropies' dtype, of numbers below 3.
    rounding = {"rtol": 0.0, "atol": 8 * torch.finfo(torch.float32).eps}
    _assert_ranks(_scores(source, _step(3, samples=3)), predicted(made, maps, 20), **rounding)


def test_a_layers_entropies_have_the_layers_weights_in_whatever_order_they_come() -> None:
    source, maps = CalibratedEntropy(GATES), _maps(9)
    for layer in (2, 0, 1):
        source.observe(_step(2, layer), _outcome(maps[layer], 20))
    _assert_ranks(_scores(source, _step(3)), predicted(GATES[2], maps, 20))


def test_there_is_one_ranking_for_all_layers_of_a_scale() -> None:
    source = CalibratedEntropy(GATES)
    _show(source, 2, _maps(9))
    first = _scores(source, _step(3, 0))
    source.observe(_step(3, 0), _outcome(_maps(16, seed=5)[0], 30))
    assert torch.equal(_scores(source, _step(3, 1)), first)


def test_tokens_that_did_not_run_keep_the_resized_older_prediction() -> None:
    source, maps = CalibratedEntropy(GATES), _maps(9)
    _show(source, 2, maps, keys=14)
    importance = predicted(GATES[2], maps, 14)
    for scale, count in ((3, 6), (4, 10)):
        fewer, kept = _maps(count, seed=scale), _kept(scale, count)
        _show(source, scale, fewer, 14 + count, kept)
        importance = [nearest(row, SCHEDULE[scale]) for row in importance]
        for sample, values in enumerate(predicted(GATES[scale], fewer, 14 + count)):
            for place, value in zip(kept[sample].tolist(), values, strict=True):
                importance[sample][place] = value
        _assert_ranks(_scores(source, _step(scale + 1)), importance)
    untouched = set(range(25)) - set(kept[0].tolist())
    assert untouched, "some tokens have an older prediction"


def test_a_scale_that_ran_in_full_leaves_nothing_of_older_predictions() -> None:
    source, maps = CalibratedEntropy(GATES), _maps(16, seed=4)
    _show(source, 2, _maps(9))
    _show(source, 3, maps, keys=30)
    _assert_ranks(_scores(source, _step(4)), predicted(GATES[3], maps, 30))


def test_kept_tokens_without_an_older_prediction_give_no_ranking() -> None:
    source = CalibratedEntropy(GATES)
    _show(source, 3, _maps(6), kept=_kept(3, 6))
    assert source.scores(_step(4)) is None
    assert "no entropy map of an earlier scale" in str(source.missing)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_entropies_that_are_not_finite_are_left_out_and_complained_about_once(value: float) -> None:
    source, maps = CalibratedEntropy(GATES), _maps(9)
    maps[1][0, 2, 4] = maps[2][1, 0, 8] = maps[0][1, 0, 8] = value
    _show(source, 2, maps)
    # The reference leaves such terms out too, and nothing else.
    _assert_ranks(_scores(source, _step(3)), predicted(GATES[2], maps, 20))
    assert ["not finite" in reason for reason in source.complaints()] == [True]
    assert source.complaints() == []


def test_a_complaint_is_not_lost_by_finite_scales_after_it() -> None:
    source, maps = CalibratedEntropy(GATES), _maps(9)
    maps[0][0, 0, 0] = torch.nan
    _show(source, 2, maps)
    _show(source, 3, _maps(16))
    assert source.scores(_step(4)) is not None
    assert len(source.complaints()) == 1
    _show(source, 4, _maps(25))
    assert source.scores(_step(5)) is not None
    assert source.complaints() == []


@pytest.mark.parametrize(
    ("layers", "heads", "got"),
    [(2, 4, "2 layers of [4] heads"), (4, 4, "4 layers of [4] heads"), (3, 5, "3 layers of [5] heads")],
)
@pytest.mark.parametrize("policy", [ToprovarPolicy, InvertedPolicy])
def test_other_layers_or_heads_give_no_ranking_and_say_so(
    layers: int, heads: int, got: str, policy: Any
) -> None:
    """In the policy that is a fallback with this reason; a scale that fits ranks again."""
    tested = policy(Options(policy=policy.name, start_scale=3, entropy_source="layer-mean"), SCHEDULE)
    source = CalibratedEntropy(GATES)
    tested.source = source if policy is ToprovarPolicy else type(tested.source)(source)
    _show(tested.source, 2, _maps(9, layers=layers, heads=heads))
    assert tested.source.scores(_step(3)) is None
    reason = f"requires entropies of 3 layers of 4 heads over the same tokens, got {got}"
    assert reason in str(tested.source.missing)
    decision = tested.decide(_step(3), torch.zeros(SAMPLES, 16, 2))
    assert isinstance(decision, Dense)
    assert reason in str(decision.fallback)
    _show(tested.source, 3, _maps(16))
    assert isinstance(tested.decide(_step(4), torch.zeros(SAMPLES, 25, 2)), Prune)


def test_layers_that_ran_other_tokens_give_no_ranking() -> None:
    source, maps = CalibratedEntropy(GATES), _maps(9)
    _show(source, 2, [*maps[:2], maps[2][..., :5]])
    assert source.scores(_step(3)) is None
    assert "over the same tokens, got 3 layers of [4] heads" in str(source.missing)


def test_a_scale_without_a_gate_gives_no_ranking() -> None:
    source = CalibratedEntropy({3: GATES[3]})
    _show(source, 2, _maps(9))
    assert source.scores(_step(3)) is None
    assert "that the calibration has a gate for" in str(source.missing)


def test_blocks_that_returned_no_entropies_give_no_ranking() -> None:
    source = CalibratedEntropy(GATES)
    for layer in range(LAYERS):
        source.observe(_step(2, layer), _outcome(None, 20))
    assert source.scores(_step(3)) is None
    assert source.complaints() == []


@pytest.mark.parametrize(("old", "new"), [(9, 20), (8, 16)])
def test_a_grid_that_is_not_square_gives_no_ranking_and_says_so(old: int, new: int) -> None:
    source = CalibratedEntropy(GATES)
    _show(source, 2, _maps(old))
    assert source.scores(_step(3)._replace(tokens=new)) is None
    assert source.missing == "no square token grid"


def test_a_picture_in_a_batch_ranks_as_it_does_alone() -> None:
    """Bit for bit, with as many terms as large models have."""
    rows, layers, heads = 5, 16, 12
    gates = {scale: gate(layers, heads, seed=scale) for scale in (2, 3)}
    full = [entropy.float() for entropy in _maps(9, 1, rows, layers, heads)]
    fewer = [entropy.float() for entropy in _maps(7, 2, rows, layers, heads)]
    kept = torch.stack([torch.randperm(16)[:7].sort().values for _ in range(rows)])

    def ranked(picked: slice, layout: Any) -> list[Tensor]:
        source, found = CalibratedEntropy(gates), []
        for scale, maps, index in ((2, full, None), (3, fewer, kept)):
            some = [layout(entropy[picked]) for entropy in maps]
            _show(source, scale, some, 30, None if index is None else index[picked])
            found.append(_scores(source, _step(scale + 1, samples=len(some[0]))))
        return found

    together = ranked(slice(None), lambda entropy: entropy)
    for row in range(rows):
        for layout in (lambda entropy: entropy, Tensor.clone):
            alone = ranked(slice(row, row + 1), layout)
            assert all(torch.equal(one[row : row + 1], two) for one, two in zip(together, alone, strict=True))


def test_only_the_first_rows_of_samples_rank() -> None:
    guided, plain, maps = CalibratedEntropy(GATES), CalibratedEntropy(GATES), _maps(9, rows=2 * SAMPLES)
    for layer, entropy in enumerate(maps):
        guided.observe(_step(2, layer, rows_per_sample=2), _outcome(entropy, 20))
        plain.observe(_step(2, layer), _outcome(entropy[:SAMPLES], 20))
    assert torch.equal(_scores(guided, _step(3, rows_per_sample=2)), _scores(plain, _step(3)))


def test_entropies_that_came_before_the_codes_told_the_rows_of_a_sample_rank_samples() -> None:
    source, maps = CalibratedEntropy(GATES), _maps(1, rows=2 * SAMPLES)
    _show(source, 0, maps)
    importance = predicted(GATES[0], maps, 20)[:SAMPLES]
    _assert_ranks(_scores(source, _step(1, rows_per_sample=2)), importance)


def test_nothing_is_left_of_an_earlier_generation() -> None:
    source = CalibratedEntropy(GATES)
    _show(source, 2, _maps(9))
    assert source.scores(_step(3)) is not None
    _show(source, 3, _maps(16, heads=5))
    assert source.scores(_step(4)) is None
    source.start_generation()
    assert [source.scores(_step(scale)) for scale in (2, 3, 4)] == [None] * 3
    assert "no entropy map of an earlier scale" in str(source.missing)
    _show(source, 3, _maps(6), kept=_kept(3, 6))
    assert source.scores(_step(4)) is None, "nor is anything laid over its predictions"


def test_a_generation_that_broke_off_leaves_no_layers_behind() -> None:
    source, maps = CalibratedEntropy(GATES), _maps(9)
    source.observe(_step(2, 3), _outcome(_maps(9, seed=3)[0], 20))
    source.start_generation()
    _show(source, 2, maps)
    _assert_ranks(_scores(source, _step(3)), predicted(GATES[2], maps, 20))


@pytest.mark.parametrize("options", [{}, {"restoration": "bypass", "entropy_source": "same-layer"}])
@pytest.mark.parametrize(("keys", "earlier"), [("absent", (1, 4, 9, 8, 18)), ("computed", (1, 4, 9, 16, 36))])
def test_a_block_gives_the_entropies_of_its_heads_and_says_over_how_many_keys(
    options: dict[str, Any], keys: Any, earlier: tuple[int, ...], under: Any, labels: Tensor
) -> None:
    """Three layers of four heads, two rows a sample; half of the tokens kept from scale 3 on."""
    model = under(start_scale=3, keep_ratio=0.5, pruned_keys=keys, **options)
    policy, seen = policy_of(model), {}
    observe = policy.observe

    def watched(step: Step, outcome: Outcome) -> None:
        seen[step.scale, step.layer] = outcome
        observe(step, outcome)

    policy.observe = watched
    model.autoregressive_infer_cfg(labels)
    assert toprovar_compiler.summary(model).to_dict()["fallbacks"] == {}
    for scale in (2, 3, 4):
        run = (1, 4, 9, 8, 18)[scale]
        for layer in range(3):
            outcome = seen[scale, layer]
            assert outcome.entropy.shape == (2 * len(labels), 4, run)
            assert outcome.keys == sum(earlier[: scale + 1])
            assert 0 <= outcome.entropy.min() <= outcome.entropy.max() <= torch.tensor(outcome.keys).log()
