"""The bound of A.5.4 with unit energies, against its equations in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import toprovar_compiler
from tests.policies.calibrations import nearest
from tests.property.entropy_oracle import softmax_entropy
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.error_bound import FullMaps, error_bound

OPTIONS = Options(layer_beta=0.1)
SAMPLES, HEADS, LAYERS = 2, 3, 3


def _maps(tokens: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [2 + torch.rand(SAMPLES, HEADS, tokens, generator=generator).double() for _ in range(LAYERS)]


def _scores(maps: list[Tensor]) -> list[list[float]]:
    """R of eq. 4 [samples][layers], by LAPACK."""
    found = []
    for sample in range(SAMPLES):
        singular = [torch.linalg.svdvals(entropy[sample].mean(0).reshape(3, 3)).tolist() for entropy in maps]
        found.append([math.exp(-0.1 * (first / second - 1)) for first, second, *_ in singular])
    return found


def _rho(maps: list[Tensor]) -> float:
    """rho_D of eq. 3, mean over samples."""
    ratios = []
    for sample in range(SAMPLES):
        values = torch.stack([entropy[sample].mean(0) for entropy in maps]).mean(0).tolist()
        ratios.append(sum(value < sum(values) / len(values) for value in values) / len(values))
    return sum(ratios) / SAMPLES


def _gamma(maps: list[Tensor], layer: int, tokens: int, kept: list[list[int]]) -> float:
    """eq. 27 of one block, with eq. 5 of the layer's older map; mean over samples."""
    found = []
    for sample in range(SAMPLES):
        entropy = nearest(maps[layer][sample].mean(0).tolist(), tokens)
        found.append(sum(h for i, h in enumerate(entropy) if i not in kept[sample]) / sum(entropy))
    return sum(found) / SAMPLES


def test_terms_are_those_of_the_equations() -> None:
    maps, some, few = _maps(), [[0, 3, 5, 9], [1, 2, 3, 15]], [[0, 1], [7, 24]]
    kept = {
        2: [(9, None)] * 3,
        3: [(16, None), (16, torch.tensor(some)), (16, torch.tensor(some))],
        4: [(25, torch.tensor(few)), (25, None), (25, torch.tensor(few))],
    }
    bound = error_bound(kept, lambda scale: maps if scale == 2 else (), OPTIONS)
    assert bound is not None
    scores = _scores(maps)
    gamma = {3: [1, 2], 4: [0, 2]}
    shares = {
        scale: sum(sum(row[layer] for layer in layers) / sum(row) for row in scores) / SAMPLES
        for scale, layers in gamma.items()
    }
    assert dict(bound.layer_shares) == pytest.approx(shares, rel=1e-4), "singular values are within 1e-4"
    lost = 16 * (_gamma(maps, 1, 16, some) + _gamma(maps, 2, 16, some))
    lost += 25 * (_gamma(maps, 0, 25, few) + _gamma(maps, 2, 25, few))
    assert bound.token == pytest.approx(lost / (2 * 16 + 2 * 25), rel=1e-12)
    assert bound.rho == pytest.approx(_rho(maps), rel=1e-12)
    assert bound.scale == 0, "every scale was run"
    assert bound.total == pytest.approx(bound.layer + bound.token)
    assert bound.to_dict() == {
        "rho": bound.rho, "scale": 0.0,
        "layer_shares": {"3": bound.layer_shares[3], "4": bound.layer_shares[4]},
        "token": bound.token, "layer": bound.layer, "total": bound.total,
    }  # fmt: skip


def test_scales_that_are_not_run_are_the_scale_term_alone() -> None:
    maps, nothing = _maps(), torch.zeros(SAMPLES, 0, dtype=torch.int64)
    bound = error_bound({3: [(16, nothing)] * 3}, lambda scale: maps, OPTIONS)
    assert bound is not None
    assert (bound.scale, bound.layer, bound.token) == (pytest.approx(1 - _rho(maps)), 0, 0)


def test_the_bound_is_vacuous_where_all_layers_are_pruned_and_gamma_is_at_least_the_share_of_tokens() -> None:
    """As the module says, where tokens go by the entropy that gamma is made of."""
    maps = _maps()
    order = maps[0].mean(1).argsort(1)[:, :4].sort(1).values
    kept = {3: [(9, order)] * 3}
    bound = error_bound(kept, lambda scale: [maps[0]] * 3, OPTIONS)
    assert bound is not None
    assert bound.layer == pytest.approx(1.0)
    assert bound.token >= 5 / 9


@pytest.mark.parametrize(
    ("kept", "maps"),
    [
        ({}, _maps()),
        ({3: [(16, None)] * 3}, _maps()),
        ({3: [(16, torch.tensor([[0, 1]] * SAMPLES))] * 3}, []),
        ({3: [(16, torch.tensor([[0, 1]] * SAMPLES))] * 3}, _maps()[:2]),
        ({3: [(20, torch.tensor([[0, 1]] * SAMPLES))] * 3}, _maps()),
        ({0: [(16, torch.tensor([[0, 1]] * SAMPLES))] * 3}, _maps()),
        ({3: [(16, torch.tensor([[0, 1]] * SAMPLES))] * 3}, [torch.full((2, 3, 9), math.nan)] * 3),
    ],
    ids=[
        "nothing ran",
        "all ran",
        "no maps",
        "not of all layers",
        "no grid",
        "no scale before",
        "not finite",
    ],
)
def test_there_is_no_bound_without_what_it_is_made_of(kept: Any, maps: list[Tensor]) -> None:
    assert error_bound(kept, lambda scale: maps, OPTIONS) is None


def test_maps_of_the_scale_before_outlive_global_layers_of_the_pruned_scale() -> None:
    full, maps = FullMaps(), _maps()
    stream = torch.empty(0)
    for scale in (1, 2):
        for layer, entropy in enumerate(maps):
            step = Step(scale, layer, 9, 0, 2 * SAMPLES, 2)
            full.observe(step, Outcome(entropy.repeat(2, 1, 1), None, stream, stream, 30))
    full.observe(Step(3, 0, 16, 0, 2 * SAMPLES, 2), Outcome(_maps(16)[0], None, stream, stream, 30))
    full.observe(Step(3, 1, 16, 0, 2 * SAMPLES, 2), Outcome(maps[1], torch.zeros(2, 9), stream, stream, 30))
    full.observe(Step(4, 0, 25, 0, 2 * SAMPLES, 2), Outcome(_maps(25)[0], None, stream, stream, 30))
    assert full.of(1) == []
    assert all(torch.equal(one, two) for one, two in zip(full.of(2), maps, strict=True))
    full.start_generation()
    assert full.of(2) == []


def test_the_summary_has_the_bound_of_the_last_generation(
    under: Any, model: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    sdpa = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append(softmax_entropy(q, k, scale))
        return sdpa(q, k, v, scale=scale)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", watched)
        model.autoregressive_infer_cfg(labels[:SAMPLES])
    maps = [entropy[:SAMPLES] for entropy in seen[6:9]]
    compiled = under(start_scale=3, keep_ratio=0.25, layer_budgets=[0, 1, 1], layer_beta=0.1)
    compiled.autoregressive_infer_cfg(labels[:SAMPLES])
    summary = toprovar_compiler.summary(compiled)
    found, kept = summary.to_dict()["error_bound"], toprovar_compiler.kept_tokens(compiled)
    assert "error bound of A.5" in str(summary)
    scores = _scores(maps)
    share = sum(sum(row[1:]) / sum(row) for row in scores) / SAMPLES
    assert found["layer_shares"] == pytest.approx({"3": share, "4": share}, rel=1e-4)
    lost = 0.0
    for scale, tokens in ((3, 16), (4, 36)):
        rows = [(row > 0.5).nonzero().flatten().tolist() for row in kept[scale]]
        lost += sum(tokens * _gamma(maps, layer, tokens, rows) for layer in (1, 2))
    assert found["token"] == pytest.approx(lost / (2 * 52))
    assert found["rho"] == pytest.approx(_rho(maps))
    toprovar_compiler.reset()
    assert toprovar_compiler.summary(compiled).to_dict()["error_bound"] is None


def test_an_exit_that_waits_has_a_bound_and_one_that_asks_for_no_entropy_has_none(
    under: Any, labels: Tensor
) -> None:
    options = {"policy": "fixed-exit", "start_scale": 3}
    for given, known in (({"scale_threshold": 0.0}, True), ({}, False)):
        compiled = under(**options, **given)
        compiled.autoregressive_infer_cfg(labels)
        bound = toprovar_compiler.summary(compiled).to_dict()["error_bound"]
        assert (bound is not None) is known
        if bound is not None:
            assert 0 < bound["scale"] == bound["total"] == pytest.approx(1 - bound["rho"])
