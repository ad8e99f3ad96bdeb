"""The fit of a gate against least squares of the whole table, and what it predicts against a direct loop."""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from toprovar_compiler.calibration.importance import RIDGE, importance
from toprovar_compiler.policies.calibration import Gate
from toprovar_compiler.policies.gate_fit import GateFit

CPU = torch.device("cpu")


class Expected(NamedTuple):
    """Of numpy's solution."""

    weights: np.ndarray
    centre: np.ndarray
    bias: float
    explained: float


def _data(pictures: int, layers: int, heads: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Entropies [B, L, H, N] of heads that resemble each other, and what they tell half of, [B, N]."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(pictures, 1, 1, tokens, generator=generator, dtype=torch.float64)
    own = torch.randn(pictures, layers, heads, tokens, generator=generator, dtype=torch.float64)
    spreads = 0.01 + 0.1 * torch.rand(layers, heads, 1, generator=generator, dtype=torch.float64)
    centres = torch.rand(layers, heads, 1, generator=generator, dtype=torch.float64)
    signs = torch.randn(layers, heads, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(pictures, tokens, generator=generator, dtype=torch.float64)
    return centres + spreads * (own + common), (own * signs).sum((1, 2)) + noise + 0.3


def _table(entropies: Tensor) -> np.ndarray:
    """[B * N, L * H], a row per token."""
    return np.array(
        [picture[..., n].flatten().tolist() for picture in entropies for n in range(picture.shape[-1])]
    )


def _expected(rows: np.ndarray, wanted: np.ndarray) -> Expected:
    """Least squares on standardised features; the penalty as rows that wish each weight to be zero."""
    centre, spread = rows.mean(0), rows.std(0)
    count, features = rows.shape
    above = np.concatenate([(rows - centre) / spread, math.sqrt(RIDGE * count) * np.eye(features)])
    target = np.concatenate([wanted - wanted.mean(), np.zeros(features)])
    weights = np.linalg.lstsq(above, target, rcond=None)[0] / spread
    missed = wanted - wanted.mean() - (rows - centre) @ weights
    total = float(((wanted - wanted.mean()) ** 2).sum())
    return Expected(weights, centre, float(wanted.mean()), 1 - float((missed**2).sum()) / total)


def _fitted(*parts: tuple[Tensor, Tensor]) -> Gate:
    _, layers, heads, _ = parts[0][0].shape
    fit = GateFit(layers, heads, CPU)
    for entropies, wanted in parts:
        fit.add(entropies, wanted)
    return fit.solve(RIDGE)


def _tolerance(features: int, tokens: int) -> float:
    """Relative to the largest value: float64's rounding, which sums of so many tokens gather at random, times
    the condition number of the system, at most features / RIDGE."""
    return float(np.finfo(float).eps * math.sqrt(tokens) * features / RIDGE)


def _assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def _assert_is(gate: Gate, expected: Expected, tokens: int) -> None:
    tolerance = _tolerance(len(expected.weights), tokens)
    _assert_close(np.array(gate.weights).flatten(), expected.weights, tolerance)
    _assert_close(np.array(gate.centre).flatten(), expected.centre, tolerance)
    _assert_close([gate.bias, gate.explained], [expected.bias, expected.explained], tolerance)


@pytest.mark.parametrize("sizes", [(3, 2, 3, 16), (1, 1, 1, 9), (5, 4, 4, 36), (1, 3, 4, 9)], ids=str)
def test_the_gate_is_that_of_least_squares_with_the_ridge_as_rows(sizes: tuple[int, ...]) -> None:
    """Also for fewer tokens than heads, where the ridge alone decides."""
    entropies, wanted = _data(*sizes)
    gate = _fitted((entropies, wanted))
    assert np.array(gate.weights).shape == np.array(gate.centre).shape == sizes[1:3]
    _assert_is(gate, _expected(_table(entropies), wanted.flatten().numpy()), wanted.numel())


def test_explained_is_the_share_of_the_squares_that_the_prediction_takes_away() -> None:
    entropies, wanted = _data(4, 2, 2, 25)
    gate = _fitted((entropies, wanted))
    missed = []
    for b, n in np.ndindex(4, 25):
        predicted = gate.bias
        for layer, head in np.ndindex(2, 2):
            distance = float(entropies[b, layer, head, n]) - gate.centre[layer][head]
            predicted += gate.weights[layer][head] * distance
        missed.append(float(wanted[b, n]) - predicted)
    mean = fmean(wanted.flatten().tolist())
    total = sum((value - mean) ** 2 for value in wanted.flatten().tolist())
    assert gate.explained == pytest.approx(1 - sum(m * m for m in missed) / total, rel=_tolerance(4, 100))
    assert 0.3 < gate.explained < 1


def test_several_parts_are_as_good_as_the_whole() -> None:
    entropies, wanted = _data(6, 2, 3, 16)
    parts = [(entropies[i:j], wanted[i:j]) for i, j in ((0, 1), (1, 4), (4, 6))]
    parts.append((entropies[:0], wanted[:0]))
    _assert_is(_fitted(*parts), _expected(_table(entropies), wanted.flatten().numpy()), wanted.numel())
    fit = GateFit(2, 3, CPU)
    for part in parts:
        fit.add(*part)
    assert fit.tokens == 6 * 16


def test_tokens_that_are_not_finite_are_left_out() -> None:
    entropies, wanted = _data(3, 2, 3, 16)
    rows, targets = _table(entropies), wanted.flatten().numpy().copy()
    entropies[0, 1, 2, 5], entropies[1, 0, 0, 0], entropies[2, 1, 1, 15] = torch.nan, torch.inf, -torch.inf
    wanted[2, 3], wanted[0, 5] = torch.nan, torch.inf
    left_out = [5, 16, 47, 35]
    fit = GateFit(2, 3, CPU)
    fit.add(entropies, wanted)
    assert fit.tokens == 48 - len(left_out)
    expected = _expected(np.delete(rows, left_out, 0), np.delete(targets, left_out))
    _assert_is(fit.solve(RIDGE), expected, fit.tokens)


@pytest.mark.parametrize("sizes", [(2, 16), (8, 256), (8, 1024)], ids=str)
def test_heads_that_do_not_vary_have_no_weight(sizes: tuple[int, int]) -> None:
    """In as many tokens too as a batch of large pictures has; the other heads' weights are theirs alone."""
    pictures, tokens = sizes
    entropies, wanted = _data(pictures, 2, 5, tokens)
    entropies = entropies.float()
    entropies[:, 0] = torch.tensor([0.0, 0.7, 0.9, 0.95, 1.0])[:, None]
    gate = _fitted((entropies, wanted))
    assert gate.weights[0] == (0.0,) * 5
    expected = _expected(_table(entropies[:, 1:]), wanted.flatten().numpy())
    tolerance = _tolerance(5, pictures * tokens)
    _assert_close(gate.weights[1], expected.weights, tolerance)
    assert gate.explained == pytest.approx(expected.explained, rel=tolerance)


def test_pictures_without_edges_explain_nothing() -> None:
    entropies, wanted = _data(2, 2, 2, 16)
    gate = _fitted((entropies, torch.zeros_like(wanted)))
    assert gate.weights == ((0.0, 0.0), (0.0, 0.0))
    assert (gate.bias, gate.explained) == (0.0, 0.0)


def test_entropies_of_any_dtype_are_summed_in_float64() -> None:
    entropies, wanted = _data(2, 2, 2, 16)
    single = entropies.float()
    expected = _expected(_table(single.double()), wanted.flatten().numpy())
    _assert_is(_fitted((single, wanted)), expected, wanted.numel())


def _edges(grey: list[list[float]]) -> list[list[float]]:
    """Length of the Sobel gradient, border pixels repeated."""
    height, width = len(grey), len(grey[0])

    def at(y: int, x: int) -> float:
        return grey[min(max(y, 0), height - 1)][min(max(x, 0), width - 1)]

    def length(y: int, x: int) -> float:
        along = sum(w * (at(y + d, x + 1) - at(y + d, x - 1)) for d, w in ((-1, 1), (0, 2), (1, 1)))
        down = sum(w * (at(y + 1, x + d) - at(y - 1, x + d)) for d, w in ((-1, 1), (0, 2), (1, 1)))
        return math.hypot(along, down)

    return [[length(y, x) for x in range(width)] for y in range(height)]


def _wanted(picture: Tensor, side: int) -> list[float]:
    """Mean edge strength of each cell, cells reaching over all pixels that they touch; then z-scored."""
    height, width = picture.shape[1:]
    grey = [[fmean(picture[:, y, x].tolist()) for x in range(width)] for y in range(height)]
    edges, cells = _edges(grey), []
    for i in range(side):
        rows = range(i * height // side, math.ceil((i + 1) * height / side))
        for j in range(side):
            columns = range(j * width // side, math.ceil((j + 1) * width / side))
            cells.append(fmean(edges[y][x] for y in rows for x in columns))
    centre, spread = fmean(cells), stdev(cells)
    return [(cell - centre) / spread for cell in cells]


@pytest.mark.parametrize(("height", "width", "side"), [(12, 12, 4), (13, 11, 3), (9, 16, 6), (3, 3, 5)])
def test_importance_is_the_z_scored_edge_strength_of_each_cell(height: int, width: int, side: int) -> None:
    pictures = torch.rand(2, 3, height, width, dtype=torch.float64)
    found = importance(pictures, side * side)
    assert found is not None
    assert (found.shape, found.dtype) == ((2, side * side), torch.float64)
    expected = torch.tensor([_wanted(picture, side) for picture in pictures], dtype=torch.float64)
    # A gradient sums 24 weighted pixels and a cell the gradients of all of its pixels, in units of a spread
    # that is no smaller than a hundredth of the largest of them.
    atol = 100 * torch.finfo(torch.float64).eps * (24 + height * width)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_a_flat_picture_has_no_importance_anywhere_and_leaves_the_others_theirs() -> None:
    greys = torch.arange(256) / 255
    flat = greys[:, None, None, None].expand(-1, 3, 13, 12) * torch.tensor([1.0, 0.7, 0.3])[:, None, None]
    picture = torch.rand(1, 3, 13, 12)
    found, alone = importance(torch.cat([flat, picture]), 16), importance(picture, 16)
    assert found is not None
    assert alone is not None
    assert found[:-1].eq(0).all()
    torch.testing.assert_close(found[-1:], alone)


@pytest.mark.parametrize("tokens", [2, 8, 15, 20])
def test_tokens_that_form_no_square_have_no_importance(tokens: int) -> None:
    assert importance(torch.rand(1, 3, 12, 12), tokens) is None
