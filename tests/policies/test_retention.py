"""How many tokens eq. 6 keeps, and which are drawn: against plain Python, and in whole generations."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import toprovar_compiler
from tests.policies.calibrations import PLAN
from tests.toy_generators import ClassVAR, TextVAR, make
from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options, parse_options
from toprovar_compiler.policies.base import Step
from toprovar_compiler.policies.budget import Budget
from toprovar_compiler.policies.retention import Retention, drawn

gate = torch.ops.toprovar.entropy_gate

SCHEDULE = (1, 4, 9, 16, 36)
EIGHT = tuple(n * n for n in range(1, 9))  # eight scales: s / S is exact in binary
RESTORATIONS: list[dict[str, Any]] = [
    {},
    {"restoration": "bypass", "entropy_source": "same-layer"},
    {"restoration": "cached-update", "entropy_source": "layer-mean"},
]
FORMS: list[dict[str, Any]] = [
    {"retention": "literal"},
    {"retention": "sampled"},
    {"tile_floor": (2, 0.25)},
    {"retention": "sampled", "retention_temperature": 0.5, "tile_floor": (2, 0.25)},
    {"retention_range": (0.0, 0.6)},
]


def _step(scale: int, layer: int = 0, samples: int = 1, schedule: tuple[int, ...] = SCHEDULE) -> Step:
    return Step(scale, layer, schedule[scale], sum(schedule[:scale]), samples, 1)


def _kept_by_equation_6(
    entropy: list[int], ends: tuple[Fraction, Fraction], phi: Fraction, score: Fraction
) -> list[Fraction]:
    """P_keep of every token, from eq. 5 and 6 as they are printed."""
    low, high = ends
    q = [phi * score * Fraction(h, sum(entropy)) for h in entropy]
    return [1 - min(max(low + (high - low) * each, Fraction(0)), Fraction(1)) for each in q]


@st.composite
def equations(draw: st.DrawFn) -> tuple[int, list[int], tuple[Fraction, Fraction], Fraction]:
    scale = draw(st.integers(2, 7))
    tokens = EIGHT[scale]
    entropy = draw(st.lists(st.integers(0, 9), min_size=tokens, max_size=tokens).filter(any))
    low, high = sorted(draw(st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(lambda p: p[0] != p[1])))
    return scale, entropy, (Fraction(low, 64), Fraction(high, 64)), Fraction(draw(st.integers(1, 4)), 4)


@given(equations())
def test_literal_keeps_the_expected_number_of_the_most_probable_tokens(case: Any) -> None:
    """The number is known without entropies, and the order of P_keep is that of the entropies."""
    scale, entropy, ends, score = case
    probability = _kept_by_equation_6(entropy, ends, Fraction(scale + 1, 8), score)
    options = Options(
        retention="literal",
        retention_range=[float(end) for end in ends],
        layer_budgets=[float(score)],
        restoration="bypass",
    )
    step = _step(scale, schedule=EIGHT)
    keep = Budget(options, EIGHT).keep(step)
    assert keep == max(2, round(sum(probability)))
    assert 0 <= (1 - ends[0]) * len(entropy) - sum(probability) <= 1, "s, R and the entropies move one token"
    order = Retention(options).order(step, torch.tensor([entropy], dtype=torch.float32))
    best = sorted(range(len(entropy)), key=lambda token: (-probability[token], token))[:keep]
    assert gate(order, keep).tolist() == [sorted(best)]


def test_the_range_in_rank_form_prunes_more_at_later_scales_and_in_detail_layers() -> None:
    options = Options(retention_range=(0.25, 0.75), layer_budgets=[1.0, 0.5, 0.0])
    budget = Budget(options, EIGHT)
    kept = [[budget.keep(_step(scale, layer, schedule=EIGHT)) for layer in range(3)] for scale in (3, 7)]
    assert kept == [[round(0.5 * 16), round(0.625 * 16), 16], [round(0.25 * 64), round(0.5 * 64), 64]]


def test_literal_takes_a_min_from_the_ratio_that_is_given_or_planned(
    under: Any, labels: Tensor, calibration_file: Path
) -> None:
    """What it prunes beyond the ratio is the sum of q, ratio x s / S: less than one token."""
    for options, ratios in (
        ({"keep_ratio": 0.5}, [0.5] * 5),
        ({"calibration": str(calibration_file)}, PLAN.keep_ratio),
    ):
        model = under(retention="literal", **options)
        model.autoregressive_infer_cfg(labels)
        for scale, share in toprovar_compiler.kept_tokens(model).items():
            ratio, tokens = ratios[scale], SCHEDULE[scale]
            assert int(share[0].sum()) == round(ratio * tokens - ratio * (scale + 1) / 5)


def test_the_range_replaces_the_plan(under: Any, labels: Tensor, calibration_file: Path) -> None:
    model = under(retention_range=(0.5, 0.5), calibration=str(calibration_file))
    model.autoregressive_infer_cfg(labels)
    kept = toprovar_compiler.kept_tokens(model)
    assert {scale: int(share[0].sum()) for scale, share in kept.items()} == {2: 4, 3: 8, 4: 18}


def test_the_default_is_the_sources_own_order() -> None:
    scores = torch.rand(2, 9)
    assert Retention(Options()).order(_step(2, samples=2), scores) is scores


@pytest.mark.parametrize("restoration", RESTORATIONS, ids=["scale-exit", "bypass", "cached-update"])
@pytest.mark.parametrize("form", FORMS, ids=[",".join(form) for form in FORMS])
def test_pictures_of_a_batch_are_those_of_each_alone(
    form: dict[str, Any], restoration: dict[str, Any], under: Any, labels: Tensor
) -> None:
    """The graphs are those that the rank form needs too; each picture is of two rows, under guidance."""
    budget = {} if "retention_range" in form else {"keep_ratio": 0.4}
    plain = under(**restoration, **budget)
    for rows in (labels, labels[:1]):
        plain.autoregressive_infer_cfg(rows)
    model = under(**restoration, **budget, **form, strict=True)
    together, kept = model.autoregressive_infer_cfg(labels), toprovar_compiler.kept_tokens(model)
    for i in range(len(labels)):
        alone = model.autoregressive_infer_cfg(labels[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
        now = toprovar_compiler.kept_tokens(model)
        assert all(torch.equal(kept[scale][i : i + 1], now[scale]) for scale in kept)
    data = toprovar_compiler.summary(model).to_dict()
    assert (data["fallbacks"], data["graphs"]) == ({}, 0)


def test_the_floor_holds_in_whole_generations(under: Any, labels: Tensor) -> None:
    model = under(keep_ratio=0.4, tile_floor=(2, 0.25))
    model.autoregressive_infer_cfg(labels)
    for scale, share in toprovar_compiler.kept_tokens(model).items():
        side = math.isqrt(SCHEDULE[scale])
        maps = torch.nn.functional.pad(share.unflatten(1, (side, side)), (0, side % 2, 0, side % 2))
        tiles = maps.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).sum((2, 4))
        assert (tiles >= 1).all()
        assert (share.sum(1) == round(0.4 * SCHEDULE[scale])).all()


def test_layers_that_keep_more_draw_the_same_tokens_and_others(
    under: Any, labels: Tensor, calibration_file: Path
) -> None:
    """A Global layer, one halfway and a Detail layer: their counts would differ if one drew others."""
    options = {"calibration": str(calibration_file), "restoration": "bypass", "layer_budgets": [0, 0.5, 1]}
    model = under(retention="sampled", **options)
    model.autoregressive_infer_cfg(labels)
    for scale, (tokens, halfway, least) in {2: (9, 7, 5), 3: (16, 11, 6), 4: (36, 23, 11)}.items():
        shares = (3 * toprovar_compiler.kept_tokens(model)[scale]).round().int()
        counts = [[int((row == times).sum()) for times in (1, 2, 3)] for row in shares]
        assert counts == [[tokens - halfway, halfway - least, least]] * 3


def _drawing(seed: int, codes: Tensor, **options: Any) -> Retention:
    retention = Retention(Options(retention="sampled", policy_seed=seed, **options))
    retention.start_generation()
    retention.observe_codes(codes)
    return retention


def test_draws_depend_on_seed_codes_and_scale_and_not_on_the_layer() -> None:
    codes, scores = torch.tensor([[1, 2, 3], [1, 3, 2]]), torch.zeros(2, 36)
    first = _drawing(0, codes).order(_step(4, samples=2), scores)
    assert torch.equal(first, _drawing(0, codes).order(_step(4, samples=2), scores))
    assert torch.equal(first, _drawing(0, codes).order(_step(4, layer=2, samples=2), scores))
    assert torch.equal(first[1:], _drawing(0, codes[1:]).order(_step(4), scores[1:]))
    assert not torch.equal(first[0], first[1])
    others = [
        _drawing(1, codes).order(_step(4, samples=2), scores),
        _drawing(0, codes.flip(0)).order(_step(4, samples=2), scores),
        _drawing(0, codes).order(_step(4, samples=2)._replace(scale=3), scores),
    ]
    assert not any(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_pairs_are_drawn_as_often_as_their_probability_says(temperature: float) -> None:
    """Of 20,000 samples, two of four tokens each: chi-square of the six pairs, five degrees of freedom."""
    samples, scores = 20_000, [1.0, 2.0, 4.0, 5.0]
    mean, spread = 3.0, math.sqrt(2.5)
    weights = [math.exp(-(score - mean) / spread / temperature) for score in scores]
    chances: dict[tuple[int, ...], float] = {}
    for i, j in permutations(range(4), 2):
        pair = tuple(sorted((i, j)))
        chance = weights[i] / sum(weights) * weights[j] / (sum(weights) - weights[i])
        chances[pair] = chances.get(pair, 0.0) + chance
    retention = _drawing(0, torch.arange(samples)[:, None], retention_temperature=temperature)
    order = retention.order(_step(1, samples=samples), torch.tensor([scores] * samples))
    kept = [tuple(row) for row in gate(order, 2).tolist()]
    chi = sum((kept.count(p) - samples * c) ** 2 / (samples * c) for p, c in chances.items())
    assert chi < 20.515, "the 0.999 quantile"


@given(
    st.lists(st.integers(-5000, 5000), min_size=2, max_size=20, unique=True),
    st.floats(0.05, 20),
    st.integers(0, 1 << 30),
)
def test_drawn_scores_are_standardised_ones_less_gumbel_noise(
    hundredths: list[int], temperature: float, seed: int
) -> None:
    # Scores that lie closer together than a float64 can square would divide by zero, here and there.
    row = [number / 100 for number in hundredths]
    uniform = torch.rand(1, len(row), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    found = drawn(torch.tensor([row], dtype=torch.float64), uniform, temperature)[0]
    mean = math.fsum(row) / len(row)
    spread = math.sqrt(math.fsum((score - mean) ** 2 for score in row) / len(row))
    for token, score in enumerate(row):
        gumbel = -math.log(-math.log(float(uniform[0, token])))
        # float64: 20 scores of at most 50 round their mean by 2.2e-13, which a spread of 0.005 and a
        # temperature of 0.05 make 9e-10; the spread's own error, 4.4 spreads away, 4e-9; log(1 - 1e-6) 2e-10.
        assert abs(float(found[token]) - ((score - mean) / spread / temperature - gumbel)) < 1e-8


def test_scores_that_are_not_finite_are_drawn_last_and_move_nothing_else() -> None:
    uniform = torch.rand(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = torch.tensor([[0.3, math.nan, 0.1, 0.7, math.inf, 0.2]])
    known = [0, 2, 3, 5]
    found = drawn(scores, uniform, 1.0)
    torch.testing.assert_close(found[:, known], drawn(scores[:, known], uniform[:, known], 1.0))
    assert found[:, [1, 4]].isinf().all()
    assert gate(found, 4).tolist() == [known]


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e30, -7.3])
def test_equal_scores_are_drawn_alike(constant: float) -> None:
    uniform = torch.rand(1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = drawn(torch.full((1, 7), constant, dtype=torch.float64), uniform, 1.0)
    assert found.argsort().tolist() == (-uniform).argsort().tolist()


def test_near_a_temperature_of_0_the_draw_is_the_rank() -> None:
    scores = torch.rand(3, 36, generator=torch.Generator().manual_seed(1))
    order = _drawing(0, torch.zeros(3, 1).long(), retention_temperature=1e-6).order(
        _step(4, samples=3), scores
    )
    assert torch.equal(gate(order, 9), gate(scores, 9))


def test_a_draw_reads_nothing_back_from_the_device() -> None:
    codes = torch.empty(2, 4, dtype=torch.long, device="meta")
    order = _drawing(0, codes).order(_step(4, samples=2), torch.empty(2, 36, device="meta"))
    assert (order.shape, order.device.type) == ((2, 36), "meta")


BAD = [
    ({"retention": "drawn"}, "retention requires one of 'rank', 'literal', 'sampled', got 'drawn'"),
    ({"retention_range": 0.5}, r"two numbers in \[0, 1\], the first not above the second, got 0.5"),
    ({"retention_range": (0.6, 0.5)}, r"first not above the second, got \(0.6, 0.5\)"),
    ({"retention_range": (0.6, 1.5)}, r"two numbers in \[0, 1\]"),
    ({"retention_range": (0.6, math.nan)}, "retention_range requires finite numbers, got nan"),
    ({"retention_range": (0, 1), "keep_ratio": 0.5}, "requires keep_ratio=None, got 0.5: each of them sets"),
    ({"retention_range": (0, 1), "target_speedup": 2}, "requires target_speedup=None, got 2: each of them"),
    ({"retention": "sampled", "retention_temperature": 0}, "requires one number above 0 or None, got 0"),
    ({"retention": "sampled", "retention_temperature": [1.0]}, r"one number above 0 or None, got \[1.0\]"),
    ({"retention_temperature": 1.0}, "requires retention='sampled', got 'rank', which draws nothing"),
    ({"tile_floor": 4}, r"tile_floor requires \(side, share\), a whole number of at least 1 .*got 4"),
    ({"tile_floor": (0, 0.1)}, r"got \(0, 0.1\)"),
    ({"tile_floor": (2.5, 0.1)}, r"got \(2.5, 0.1\)"),
    ({"tile_floor": (2, 0)}, r"a number in \(0, 1\], got \(2, 0\)"),
    ({"tile_floor": (2, 1.1)}, r"a number in \(0, 1\], got \(2, 1.1\)"),
    ({"tile_floor": "4"}, "tile_floor requires a number or a sequence of numbers, got '4'"),
    ({"policy": "random", "retention": "sampled"}, "got 'random', which draws already"),
    *(
        ({"policy": policy, **given}, f"requires a policy that ranks tokens for eq. 6, got '{policy}'")
        for policy in ("fastvar", "skipvar", "fixed-exit")
        for given in ({"retention": "sampled"}, {"retention_range": (0, 1)}, {"tile_floor": (2, 0.1)})
    ),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[str(given) for given, _ in BAD])
def test_bad_options_are_refused_with_value_and_expectation(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options(given)


@pytest.mark.parametrize("given", [{"retention": "literal"}, {"retention_range": (0.5, 0.9)}])
def test_equation_6_needs_a_schedule(given: dict[str, Any]) -> None:
    assert toprovar_compiler.compile(make(ClassVAR), **given)
    with pytest.raises(OptionError, match="requires a model that states its schedule .*got none; set keep"):
        toprovar_compiler.compile(make(TextVAR), **given)
