"""Controls: toprovar's budget and restoration, with other tokens kept."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import toprovar_compiler
from tests.policies.eager import highest
from toprovar_compiler.errors import OptionError, UnsupportedModelError
from toprovar_compiler.options import Options
from toprovar_compiler.policies import make_policy
from toprovar_compiler.policies.base import Dense, Outcome, Prune, Step
from toprovar_compiler.policies.edges import sobel_magnitude
from toprovar_compiler.policies.oracle import edge_maps, set_maps

SCHEDULE = (1, 4, 9, 16, 36)
SAMPLES, WIDTH = 2, 3
RESTORATIONS = [{}, {"restoration": "bypass", "entropy_source": "same-layer"}]
GRIDS = (2, 3, 4)


def _step(scale: int, layer: int = 0, samples: int = SAMPLES) -> Step:
    return Step(scale, layer, SCHEDULE[scale], sum(SCHEDULE[:scale]), samples, 1)


def _stream(step: Step) -> Tensor:
    return torch.zeros(step.rows, step.tokens, WIDTH)


def _scores(policy: Any, step: Step) -> Tensor:
    policy.decide(step, _stream(step))
    scores = policy.source.scores(step)
    assert scores is not None
    return scores


def _maps(samples: int = 3) -> Tensor:
    return torch.rand(samples, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _paint(model: Any, labels: Tensor, maps: Tensor | None = None) -> tuple[Tensor, dict[int, Tensor]]:
    if maps is not None:
        set_maps(model, maps)
    picture = model.autoregressive_infer_cfg(labels)
    return picture, toprovar_compiler.kept_tokens(model)


@pytest.mark.parametrize("options", RESTORATIONS, ids=["scale-exit", "bypass"])
@pytest.mark.parametrize("policy", ["random", "inverted", "oracle"])
def test_pictures_of_a_batch_are_those_of_each_alone(
    policy: str, options: dict[str, Any], under: Any, labels: Tensor
) -> None:
    model, maps = under(policy=policy, **options), _maps() if policy == "oracle" else None
    together, kept = _paint(model, labels, maps)
    for i in range(len(labels)):
        picture, alone = _paint(model, labels[i : i + 1], None if maps is None else maps[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], picture)
        assert all(torch.equal(kept[scale][i : i + 1], alone[scale]) for scale in (*kept, *alone))


@pytest.mark.parametrize("options", RESTORATIONS, ids=["scale-exit", "bypass"])
def test_the_budget_is_that_of_toprovar(options: dict[str, Any], under: Any, labels: Tensor) -> None:
    counts = {}
    for policy in ("toprovar", "random", "inverted", "oracle"):
        model = under(policy=policy, keep_ratio=0.4, **options)
        _paint(model, labels, _maps() if policy == "oracle" else None)
        counts[policy] = toprovar_compiler.summary(model).to_dict()["per_scale"]
        assert toprovar_compiler.summary(model).to_dict()["fallbacks"] == {}
    assert counts["random"] == counts["inverted"] == counts["oracle"] == counts["toprovar"]


def test_inverted_keeps_what_toprovar_prunes_first() -> None:
    kept = {}
    for name in ("toprovar", "inverted"):
        policy = make_policy(Options(policy=name, start_scale=3, keep_ratio=0.5), SCHEDULE)
        before = _step(2)
        heads = torch.rand(SAMPLES, 4, 9, generator=torch.Generator().manual_seed(1))
        policy.observe(before, Outcome(heads, None, _stream(before), _stream(before), 14))
        decision = policy.decide(_step(3), _stream(_step(3)))
        assert isinstance(decision, Prune)
        assert decision.choice is not None
        kept[name] = decision.choice.kept
        entropy = torch.tensor([[fmean(column) for column in zip(*h, strict=True)] for h in heads.tolist()])
        grid = F.interpolate(entropy.reshape(SAMPLES, 1, 3, 3), size=(4, 4), mode="nearest").flatten(1)
        order = grid if name == "inverted" else -grid
        assert kept[name].tolist() == [highest(row.tolist(), 8) for row in order]
    assert not torch.equal(kept["toprovar"], kept["inverted"])


def test_inverted_has_the_entropy_sources_reasons_and_random_needs_none() -> None:
    step = _step(3)
    inverted = make_policy(Options(policy="inverted", start_scale=3), SCHEDULE).decide(step, _stream(step))
    assert isinstance(inverted, Dense)
    assert "no entropy map" in str(inverted.fallback)
    random = make_policy(Options(policy="random", start_scale=3), SCHEDULE)
    assert isinstance(random.decide(step, _stream(step)), Prune)
    assert random.decide(_step(2), _stream(_step(2))) == Dense(entropy=False)


def _random(seed: int = 0, codes: Tensor | None = None) -> Any:
    policy = make_policy(Options(policy="random", policy_seed=seed, start_scale=2), SCHEDULE)
    policy.start_generation()
    if codes is not None:
        policy.observe_codes(codes, torch.zeros(*codes.shape, 1))
    return policy


CODES = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 3]])


def test_random_order_depends_on_seed_codes_scale_and_layer_and_on_nothing_else() -> None:
    first = _scores(_random(codes=CODES), _step(3))
    assert torch.equal(first, _scores(_random(codes=CODES), _step(3)))
    alone = _random(codes=CODES[1:])
    assert torch.equal(first[1:], _scores(alone, _step(3, samples=1)))
    others = [
        _scores(_random(seed=1, codes=CODES), _step(3)),
        _scores(_random(codes=CODES.flip(0)), _step(3)),
        _scores(_random(codes=CODES), _step(3, layer=1)),
        _scores(_random(), _step(3)),
    ]
    assert not any(torch.equal(first, other) for other in others)
    assert not torch.equal(first[0], first[1])


def test_random_order_takes_in_the_codes_of_all_scales_and_forgets_them_with_the_generation() -> None:
    policy = _random(codes=CODES)
    early = _scores(policy, _step(3))
    policy.observe_codes(CODES, torch.zeros(*CODES.shape, 1))
    assert not torch.equal(_scores(policy, _step(3)), early)
    policy.start_generation()
    policy.observe_codes(CODES, torch.zeros(*CODES.shape, 1))
    assert torch.equal(_scores(policy, _step(3)), early)


def test_random_order_keeps_every_token_about_as_often() -> None:
    """Of 2000 samples at 9 of 36, a token is kept 500 times give or take 19.4: six times that is bounds."""
    samples = 2000
    policy = _random(codes=torch.arange(4 * samples).reshape(samples, 4))

    scores = _scores(policy, _step(4, samples=samples))
    kept = torch.zeros(samples, 36).scatter(1, scores.topk(9, dim=1, largest=False).indices, 1.0).sum(0)
    spread = (samples * 0.25 * 0.75) ** 0.5
    assert float((kept - samples / 4).abs().max()) < 6 * spread


def test_oracle_keeps_the_strongest_cells(under: Any, labels: Tensor) -> None:
    maps = _maps()
    _, kept = _paint(under(policy="oracle", start_scale=2, keep_ratio=0.3), labels, maps)
    for side, scale in ((3, 2), (4, 3), (6, 4)):
        cells = maps.unflatten(1, (side, -1)).unflatten(3, (side, -1)).mean((2, 4)).flatten(1)
        expected = [highest(row.tolist(), round(0.3 * side * side)) for row in cells]
        assert [row.nonzero().flatten().tolist() for row in kept[scale]] == expected


def test_oracle_without_maps_is_refused_before_anything_runs(under: Any, labels: Tensor) -> None:
    model = under(policy="oracle")
    with pytest.raises(OptionError, match="requires maps of the dense pictures, got none; call .*set_maps"):
        model.autoregressive_infer_cfg(labels)
    _, kept = _paint(model, labels, _maps())
    assert kept
    set_maps(model, None)
    with pytest.raises(OptionError, match="got none"):
        model.autoregressive_infer_cfg(labels)


def test_oracle_refuses_maps_of_another_number_of_samples(under: Any, labels: Tensor) -> None:
    with pytest.raises(OptionError, match="a map for each of 3 samples, got 2"):
        _paint(under(policy="oracle"), labels, _maps(2))


@pytest.mark.parametrize("maps", [torch.zeros(2, 4), torch.zeros(2, 4, 4, dtype=torch.long)])
def test_set_maps_refuses_what_is_no_map(maps: Tensor, under: Any) -> None:
    with pytest.raises(OptionError, match=r"requires floating-point maps \[samples, H, W\], got .*edge_maps"):
        set_maps(under(policy="oracle"), maps)


def test_set_maps_refuses_another_policy_and_a_model_that_is_not_compiled(under: Any, model: Any) -> None:
    with pytest.raises(OptionError, match="compiled with policy='oracle', got policy='toprovar'"):
        set_maps(under(), _maps())
    with pytest.raises(UnsupportedModelError, match="not"):
        set_maps(torch.nn.Linear(2, 2), _maps())


def test_edges_are_where_brightness_changes() -> None:
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 4:] = 1.0
    strength = edge_maps(picture)[0]
    assert strength[:, 3:5].eq(4.0).all(), "a vertical edge of height 1: (1 + 2 + 1) x 1"
    assert strength[:, :3].eq(0).all()
    assert strength[:, 5:].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_sobel_magnitude_is_its_definition(dtype: torch.dtype) -> None:
    maps = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    found = sobel_magnitude(maps)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    padded = F.pad(maps.double(), (1, 1, 1, 1), mode="replicate")

    def at(dy: int, dx: int) -> Tensor:
        return padded[..., 1 + dy : 6 + dy, 1 + dx : 5 + dx]

    gx = sum(weight * (at(dy, -1) - at(dy, 1)) for dy, weight in ((-1, 1), (0, 2), (1, 1)))
    gy = sum(weight * (at(-1, dx) - at(1, dx)) for dx, weight in ((-1, 1), (0, 2), (1, 1)))
    torch.testing.assert_close(found.double(), (gx**2 + gy**2).sqrt(), rtol=1e-6, atol=1e-6)
