"""Which layers are Global: section 4 and eq. 4, against LAPACK and plain Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import toprovar_compiler
from tests.property.entropy_oracle import softmax_entropy
from toprovar_compiler.errors import OptionError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Dense, Outcome, Prune, Step
from toprovar_compiler.policies.layer_classes import LayerClasses, representation_score
from toprovar_compiler.policies.rankings import RandomPolicy
from toprovar_compiler.policies.toprovar import ToprovarPolicy

SIDE, LAYERS, HEADS = 4, 3, 2
TOKENS = SIDE * SIDE
BETA = 0.1


def _step(scale: int, layer: int, samples: int = 1, tokens: int = TOKENS) -> Step:
    return Step(scale, layer, tokens, 0, samples, 1)


def _map(ratio: float) -> Tensor:
    """A map [SIDE, SIDE] of two components, whose singular values are ``ratio`` and 1."""
    flat, wave = torch.ones(SIDE).double(), torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    return (ratio * torch.outer(flat, flat) + torch.outer(wave, wave)) / SIDE


def _ratio(score: float, beta: float = BETA) -> float:
    """The ratio that eq. 4 gives this score for."""
    return 1 - math.log(score) / beta


def _show(classes: Any, scale: int, ratios: list[list[float]]) -> None:
    """Maps of every layer, one number a sample; two heads of which neither has the ratio of their mean."""
    for layer, of_samples in enumerate(ratios):
        maps = torch.stack([_map(ratio).flatten() for ratio in of_samples])
        tilt = torch.linspace(0, 3, TOKENS).double()
        heads = torch.stack([maps - tilt, maps + tilt], 1)
        outcome = Outcome(heads, None, torch.empty(0), torch.empty(0), 40)
        classes.observe(_step(scale, layer, len(of_samples)), outcome)


def _classes(scores: list[list[float]], **options: Any) -> tuple[list[bool | None], list[str]]:
    """Whether each layer is Detail where samples have these R at the scale before; the complaints."""
    options = {"layer_dimension": "spectrum", "layer_beta": BETA, **options}
    classes = LayerClasses(Options(**options))
    _show(classes, 2, [[_ratio(score) for score in of_samples] for of_samples in scores])
    found = [classes.is_detail(_step(3, layer)) for layer in range(len(scores))]
    return found, classes.complaints()


def test_the_score_is_that_of_equation_4() -> None:
    ratio = torch.tensor([1.0, 2.0, 33.0, math.inf, math.nan], dtype=torch.float64)
    score = representation_score(ratio, 0.5).tolist()
    assert score[:4] == pytest.approx([1.0, math.exp(-0.5), math.exp(-16), 0.0], rel=1e-15)
    assert math.isnan(score[4])


def test_detail_at_or_above_the_band_ambiguous_within_it_and_global_below() -> None:
    found, complaints = _classes([[0.95], [0.61], [0.59], [0.41], [0.39], [0.01]])
    assert found == [True, True, False, False, False, False]
    assert len(complaints) == 2, "a reason for each ambiguous layer, none for the Global ones"
    assert all("between Global and Detail" in reason for reason in complaints)


def test_the_band_is_an_option() -> None:
    assert _classes([[0.95], [0.6], [0.4]], layer_band=[0.3, 0.7])[0] == [True, False, False]
    assert _classes([[0.95], [0.6], [0.4]], layer_band=(0.2, 0.3)) == ([True] * 3, [])


def test_a_layer_is_pruned_only_where_every_sample_calls_it_detail() -> None:
    found, complaints = _classes([[0.9, 0.8], [0.9, 0.1], [0.9, 0.5]])
    assert found == [True, False, False]
    assert len(complaints) == 1, "Global in one sample is Global; only the third is ambiguous"


def test_layers_that_are_all_global_are_a_reason() -> None:
    found, complaints = _classes([[0.1], [0.2], [1e-9]])
    assert found == [False] * 3
    assert complaints == ["no layer is Detail in every sample: nothing was pruned"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_map_that_is_not_finite_is_not_pruned(value: float) -> None:
    classes = LayerClasses(Options(layer_dimension="spectrum"))
    outcome = Outcome(torch.full((1, HEADS, TOKENS), value), None, torch.empty(0), torch.empty(0), 40)
    classes.observe(_step(2, 0), outcome)
    assert classes.is_detail(_step(3, 0)) is False


def test_the_last_scale_before_pruning_decides_for_all_scales_after_it() -> None:
    classes = LayerClasses(Options(layer_dimension="spectrum", layer_beta=BETA))
    _show(classes, 1, [[_ratio(0.1)], [_ratio(0.9)], [_ratio(0.9)]])
    assert classes.is_detail(_step(1, 0)) is None, "the scale that runs tells nothing of itself"
    _show(classes, 2, [[_ratio(0.9)], [_ratio(0.1)], [_ratio(0.9)]])
    assert classes.reads_entropy
    assert [classes.is_detail(_step(3, layer)) for layer in range(3)] == [True, False, True]
    assert not classes.reads_entropy
    _show(classes, 3, [[_ratio(0.1)]] * 3)
    assert [classes.is_detail(_step(4, layer)) for layer in range(3)] == [True, False, True]
    classes.start_generation()
    assert classes.is_detail(_step(3, 0)) is None


def test_centred_maps_have_another_ratio() -> None:
    maps = [
        [_map(30.0) + _map(1.0)],
        [3 * _map(30.0) + 2 * _map(1.0) @ torch.diag(torch.arange(4.0).double())],
    ]
    for name, beta in {"spectrum": 0.05, "centred-spectrum": 1.0}.items():
        classes = LayerClasses(Options(layer_dimension=name, layer_beta=beta))
        expected = []
        for layer, (matrix,) in enumerate(maps):
            shown = matrix[None].flatten(1)[:, None].expand(1, HEADS, TOKENS)
            classes.observe(_step(2, layer), Outcome(shown, None, torch.empty(0), torch.empty(0), 40))
            centred = matrix.numpy() - (matrix.mean().item() if name == "centred-spectrum" else 0)
            first, second, *_ = np.linalg.svd(centred, compute_uv=False)
            ratio = first / second if second > 1e-9 else math.inf
            expected.append(math.exp(-beta * (ratio - 1)) >= 0.6)
        assert [classes.is_detail(_step(3, layer)) for layer in range(2)] == expected


def test_off_every_layer_is_detail_and_nothing_is_read() -> None:
    classes = LayerClasses(Options())
    assert not classes.reads_entropy
    assert classes.is_detail(_step(3, 0)) is True


def test_the_policy_runs_global_layers_in_full_and_keeps_asking_for_entropy() -> None:
    options = Options(
        start_scale=3,
        keep_ratio=0.5,
        entropy_source="layer-mean",
        layer_dimension="spectrum",
        layer_beta=BETA,
    )
    policy = ToprovarPolicy(options, (1, 4, TOKENS, TOKENS, TOKENS))
    policy.start_generation()
    _show(policy, 2, [[_ratio(0.1)], [_ratio(0.9)], [_ratio(0.9)]])
    stream = torch.zeros(1, TOKENS, 2)
    assert policy.decide(_step(3, 0), stream) == Dense(entropy=True)
    assert isinstance(policy.decide(_step(3, 1), stream), Prune)


def test_without_maps_there_are_no_classes_and_that_is_a_fallback() -> None:
    policy = RandomPolicy(Options(policy="random", start_scale=0, layer_dimension="spectrum"), (16, 36))
    decision = policy.decide(_step(0, 0), torch.zeros(1, TOKENS, 2))
    assert isinstance(decision, Dense)
    assert "to tell Global layers by" in str(decision.fallback)
    waiting = RandomPolicy(Options(policy="random", start_scale=1, layer_dimension="spectrum"), (16, 36))
    assert waiting.decide(_step(0, 0), torch.zeros(1, TOKENS, 2)) == Dense(entropy=True)


@pytest.mark.parametrize("restoration", ["scale-exit", "bypass"])
def test_a_model_is_pruned_in_the_layers_that_its_dense_maps_call_detail(
    restoration: Any, under: Any, model: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture of each label is that of the budgets that LAPACK gives for the untouched model's maps."""
    seen: list[Tensor] = []
    sdpa = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append(softmax_entropy(q, k, scale).mean(1))
        return sdpa(q, k, v, scale=scale)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", watched)
        model.autoregressive_infer_cfg(labels)
    maps = [entropy[: len(labels)].unflatten(1, (3, 3)) for entropy in seen[6:9]]  # of scale 2
    singular = np.linalg.svd(torch.stack(maps, 1).numpy(), compute_uv=False)
    ratios = singular[..., 0] / singular[..., 1]  # [samples, layers]
    beta = math.log(2) / (float(np.quantile(ratios, 0.7)) - 1)
    budgets = [[float(math.exp(-beta * (r - 1)) >= 0.5) for r in row] for row in ratios]
    common = {"start_scale": 3, "keep_ratio": 0.5, "restoration": restoration}
    own = {**common, "layer_dimension": "spectrum", "layer_beta": beta, "layer_band": (0.5, 0.5)}
    kinds = set()
    for i, budget in enumerate(budgets):
        kinds.add(tuple(budget))
        expected = under(layer_budgets=budget, **common).autoregressive_infer_cfg(labels[i : i + 1])
        picture = under(**own).autoregressive_infer_cfg(labels[i : i + 1])
        torch.testing.assert_close(picture, expected)
    assert len(kinds) > 1, "classes differ from picture to picture"
    most_careful = [min(column) for column in zip(*budgets, strict=True)]
    assert set(most_careful) == {0.0, 1.0}
    expected = under(layer_budgets=most_careful, **common).autoregressive_infer_cfg(labels)
    torch.testing.assert_close(under(**own).autoregressive_infer_cfg(labels), expected)
    rows = toprovar_compiler.summary(model).to_dict()["per_layer"]
    assert [row["tokens_computed"] < row["tokens_total"] for row in rows] == [bool(r) for r in most_careful]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_dimension": "svd"}, "layer_dimension requires one of 'off', 'spectrum'.*got 'svd'"),
        ({"layer_beta": 0}, "layer_beta requires one number above 0 or None, got 0"),
        ({"layer_beta": [1.0]}, "layer_beta requires one number above 0"),
        ({"layer_beta": math.inf}, "layer_beta requires finite numbers"),
        ({"layer_band": 0.5}, "layer_band requires two numbers in \\[0, 1\\].*got 0.5"),
        ({"layer_band": (0.6, 0.4)}, "the first not above the second, got \\(0.6, 0.4\\)"),
        ({"layer_band": (0.4, 1.4)}, "two numbers in \\[0, 1\\]"),
        (
            {"layer_dimension": "spectrum", "layer_budgets": [1, 0]},
            "requires layer_budgets=None, got \\[1, 0\\]",
        ),
        ({"layer_dimension": "spectrum", "policy": "fastvar"}, "tells layers apart, got 'fastvar'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**options)
