"""Which map ranks the tokens: every source against a few lines of its definition."""

from __future__ import annotations

import statistics
from math import isqrt

import pytest
import torch
from torch import Tensor

from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.entropy_source import LastFullLayer, LayerMean, SameLayer, resize

SAMPLES, LAYERS = 2, 3
# Entropies are multiples of this, so that sums of a few are exact.
GRAIN = 2.0**-20


def _step(scale: int, layer: int, tokens: int, rows_per_sample: int = 1) -> Step:
    return Step(scale, layer, tokens, 0, SAMPLES * rows_per_sample, rows_per_sample)


def _maps(tokens: int, seed: int = 0, rows: int = SAMPLES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [_grains(rows, tokens, generator) for _ in range(LAYERS)]


def _grains(rows: int, tokens: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1 << 20, (rows, tokens), generator=generator).double() * GRAIN


def _outcome(entropy: Tensor | None, kept: Tensor | None = None) -> Outcome:
    """Of a block with two heads that differ, whose mean is ``entropy`` [B, N], bit for bit."""
    heads = None
    if entropy is not None:
        apart = _grains(*entropy.shape, torch.Generator().manual_seed(7))
        heads = torch.stack([entropy - apart, entropy + apart], 1)
    return Outcome(heads, kept, torch.empty(0), torch.empty(0), 20)


def _nearest(values: list[float], tokens: int) -> list[float]:
    """Nearest neighbour on square grids, by its definition: cell i of m reads cell floor(i * n / m)."""
    old, new = isqrt(len(values)), isqrt(tokens)
    return [values[(y * old // new) * old + x * old // new] for y in range(new) for x in range(new)]


def _z_scores(values: list[float]) -> list[float]:
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return [(value - mean) / spread for value in values]


def _show_scale(source: SameLayer | LastFullLayer, scale: int, maps: list[Tensor]) -> None:
    for layer, entropy in enumerate(maps):
        source.observe(_step(scale, layer, entropy.shape[1]), _outcome(entropy))


@pytest.mark.parametrize(("old", "new"), [(4, 9), (9, 16), (16, 36), (9, 9), (1, 4), (36, 16)])
def test_resize_is_nearest_neighbour_on_the_grid(old: int, new: int) -> None:
    (entropy, *_) = _maps(old)
    resized = resize(entropy, new)
    assert resized is not None
    assert resized.tolist() == [_nearest(row, new) for row in entropy.tolist()]


@pytest.mark.parametrize(("old", "new"), [(8, 16), (16, 8)])
def test_resize_gives_nothing_where_a_grid_is_not_square(old: int, new: int) -> None:
    assert resize(torch.zeros(1, old), new) is None


def test_same_layer_is_the_layers_map_of_the_previous_scale() -> None:
    source, maps = SameLayer(), _maps(4)
    _show_scale(source, 1, maps)
    for layer, entropy in enumerate(maps):
        scores = source.scores(_step(2, layer, 9))
        assert scores is not None
        assert scores.tolist() == [_nearest(row, 9) for row in entropy.tolist()]


def test_layer_mean_is_the_mean_of_z_scored_maps_of_the_previous_scale() -> None:
    source, maps = LayerMean(), _maps(4)
    _show_scale(source, 1, maps)
    scores = source.scores(_step(2, 0, 9))
    assert scores is not None
    expected = [
        _nearest(
            [statistics.fmean(c) for c in zip(*(_z_scores(m[s].tolist()) for m in maps), strict=True)], 9
        )
        for s in range(SAMPLES)
    ]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)


def test_layer_mean_is_one_map_for_all_layers_of_a_scale() -> None:
    source = LayerMean()
    _show_scale(source, 1, _maps(4))
    first = source.scores(_step(2, 0, 9))
    source.observe(_step(2, 0, 9), _outcome(_maps(9)[0]))
    later = source.scores(_step(2, 1, 9))
    assert first is not None
    assert later is not None
    assert torch.equal(first, later)


def test_last_full_layer_is_the_map_of_the_same_scale() -> None:
    source, maps = LastFullLayer(), _maps(9)
    assert source.scores(_step(2, 0, 9)) is None
    source.observe(_step(2, 0, 9), _outcome(maps[0]))
    source.observe(_step(2, 1, 9), _outcome(maps[1][:, :4], torch.tensor([[0, 1, 2, 3]] * SAMPLES)))
    scores = source.scores(_step(2, 2, 9))
    assert scores is not None
    assert torch.equal(scores, maps[0])


def test_last_full_layer_forgets_at_the_next_scale() -> None:
    source = LastFullLayer()
    source.observe(_step(2, 0, 9), _outcome(_maps(9)[0]))
    assert source.scores(_step(3, 0, 9)) is None


def test_entropies_of_kept_tokens_are_laid_over_the_older_map() -> None:
    source = SameLayer()
    old, new = _maps(4)[0], _maps(2, seed=1)[0]
    kept = torch.tensor([[0, 5], [3, 8]])
    source.observe(_step(1, 0, 4), _outcome(old))
    source.observe(_step(2, 0, 9), _outcome(new, kept))
    expected = [_nearest(row, 9) for row in old.tolist()]
    for sample in range(SAMPLES):
        for place, value in zip(kept[sample].tolist(), new[sample].tolist(), strict=True):
            expected[sample][place] = value
    scores = source.scores(_step(3, 0, 9))
    assert scores is not None
    assert scores.tolist() == expected


def test_kept_tokens_without_an_older_map_give_no_ranking() -> None:
    source = SameLayer()
    source.observe(_step(2, 0, 9), _outcome(_maps(2)[0], torch.tensor([[0, 5], [3, 8]])))
    assert source.scores(_step(3, 0, 9)) is None


@pytest.mark.parametrize("kind", [SameLayer, LayerMean, LastFullLayer])
def test_only_the_first_rows_of_samples_rank(kind: type) -> None:
    guided, plain = kind(), kind()
    maps = _maps(9, rows=2 * SAMPLES)
    for layer, entropy in enumerate(maps):
        guided.observe(_step(2, layer, 9, 2), _outcome(entropy))
        plain.observe(_step(2, layer, 9), _outcome(entropy[:SAMPLES]))
    scale = 2 if kind is LastFullLayer else 3
    with_rows, without = guided.scores(_step(scale, 2, 9, 2)), plain.scores(_step(scale, 2, 9))
    assert with_rows.shape == (SAMPLES, 9)
    torch.testing.assert_close(with_rows, without, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [SameLayer, LayerMean])
def test_maps_that_came_before_the_codes_told_the_rows_of_a_sample_rank_samples(kind: type) -> None:
    source = kind()
    for layer, entropy in enumerate(_maps(4, rows=2 * SAMPLES)):
        source.observe(Step(0, layer, 4, 0, 2 * SAMPLES, 1), _outcome(entropy))
    assert source.scores(_step(1, 0, 9, 2)).shape == (SAMPLES, 9)


@pytest.mark.parametrize("kind", [SameLayer, LayerMean, LastFullLayer])
def test_nothing_is_left_of_an_earlier_generation(kind: type) -> None:
    source = kind()
    _show_scale(source, 2, _maps(9))
    source.start_generation()
    assert all(source.scores(_step(scale, 0, 9)) is None for scale in (2, 3))


def test_a_constant_map_adds_nothing_to_the_layer_mean() -> None:
    source, (entropy, *_) = LayerMean(), _maps(9)
    source.observe(_step(1, 0, 9), _outcome(entropy))
    source.observe(_step(1, 1, 9), _outcome(torch.full((SAMPLES, 9), 1.5, dtype=torch.float64)))
    scores = source.scores(_step(2, 0, 9))
    assert scores is not None
    assert scores.argsort().tolist() == entropy.argsort().tolist()


def test_a_map_that_is_not_finite_is_left_out_of_the_layer_mean_and_complained_about() -> None:
    source, (entropy, other, _) = LayerMean(), _maps(9)
    broken = other.clone()
    broken[0, 4] = float("nan")
    source.observe(_step(1, 0, 9), _outcome(entropy))
    source.observe(_step(1, 1, 9), _outcome(broken))
    scores = source.scores(_step(2, 0, 9))
    assert scores is not None
    assert scores[0].argsort().tolist() == entropy[0].argsort().tolist()
    assert [("not finite" in reason) for reason in source.complaints()] == [True]
    assert source.complaints() == []


def test_the_first_scale_of_one_token_gives_no_ranking_by_layer_mean() -> None:
    source = LayerMean()
    _show_scale(source, 0, _maps(1))
    assert source.scores(_step(1, 0, 4)) is None
