"""The two largest singular values and what follows from them, against LAPACK in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from toprovar_compiler.errors import KernelInputError
from toprovar_compiler.policies.layer_spectrum import (
    Spectrum,
    centred_spectrum,
    raw_spectrum,
)

Function = Callable[[Tensor], Spectrum]

FUNCTIONS: list[Function] = [raw_spectrum, centred_spectrum]
# What the module promises whatever the gaps, and what it reaches where the values lie apart.
ANY_GAP, CLEAR_GAP = 1e-4, 1e-10

_quick = settings(deadline=None, max_examples=40)
_seeds = st.integers(0, 2**16)
_sides = st.integers(2, 20)
_dtypes = st.sampled_from([torch.float32, torch.float64])
_functions = st.sampled_from(FUNCTIONS)


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Maps like those of entropies: positive, and varied by a quarter of the mean."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (4.0 + noise).to(dtype)


def _with_values(values: list[float], height: int, width: int, seed: int) -> Tensor:
    """A map [height, width] float64 of the given singular values."""
    generator = torch.Generator().manual_seed(seed)

    def orthonormal(side: int) -> Tensor:
        q: Tensor = torch.linalg.qr(
            torch.randn(side, len(values), generator=generator, dtype=torch.float64)
        ).Q
        return q

    return orthonormal(height) * torch.tensor(values, dtype=torch.float64) @ orthonormal(width).mT


def _assert_near(got: Spectrum, first: Tensor, second: Tensor, rtol: float, maps: Tensor) -> None:
    # A sum of n products is off by up to n eps of their norms, and by Weyl's inequality no singular value
    # moves by more than the norm of what is added to its matrix: of sigma_2, that much is uncertain.
    atol = max(maps.shape[-2:]) * torch.finfo(torch.float64).eps * float(maps.double().norm())
    torch.testing.assert_close(got.first, first, rtol=rtol, atol=atol)
    torch.testing.assert_close(got.second, second, rtol=rtol, atol=atol)


@_quick
@given(height=_sides, width=_sides, seed=_seeds, dtype=_dtypes)
def test_spectra_are_those_of_lapack(height: int, width: int, seed: int, dtype: torch.dtype) -> None:
    maps = _random(3, height, width, seed=seed, dtype=dtype)
    exact = maps.double()
    for got, matrices in (
        (raw_spectrum(maps), exact),
        (centred_spectrum(maps), exact - exact.mean((-2, -1), keepdim=True)),
    ):
        values = torch.linalg.svdvals(matrices)
        _assert_near(got, values[:, 0], values[:, 1], ANY_GAP, maps)
        assert all(part.dtype == torch.float64 and part.shape == (3,) for part in got)
        torch.testing.assert_close(got.ratio, values[:, 0] / values[:, 1], rtol=2 * ANY_GAP, atol=0.0)


@pytest.mark.parametrize("ratio", [1.5, 35.0, 190.0, 1e4, 1e8])
def test_a_small_second_value_is_not_lost_beside_the_first(ratio: float) -> None:
    got = raw_spectrum(_with_values([3.0, 3.0 / ratio, 2.0 / ratio, 0.1 / ratio], 24, 16, seed=0))
    assert got.ratio.item() == pytest.approx(ratio, rel=max(CLEAR_GAP, 1e-15 * ratio))


def test_columns_that_hold_none_of_a_component_do_not_mislead() -> None:
    got = raw_spectrum(torch.diag(torch.tensor([1.0, 5.0, 0.0, 3.0])))
    assert (got.first.item(), got.second.item()) == pytest.approx((5.0, 3.0), rel=1e-15)


@_quick
@given(
    gap=st.sampled_from([10.0**-power for power in range(1, 17)]),
    equal=st.integers(2, 30),
    seed=_seeds,
)
@example(gap=0.0, equal=32, seed=0)
def test_values_that_nearly_coincide_are_right_all_the_same(gap: float, equal: int, seed: int) -> None:
    values = [max(0.0, 1.0 - gap * i) for i in range(equal)]
    got = raw_spectrum(_with_values(values, 40, 32, seed))
    assert got.first.item() == pytest.approx(values[0], rel=ANY_GAP)
    assert got.second.item() == pytest.approx(values[1], rel=ANY_GAP)
    assert got.ratio.item() >= 1.0


@_quick
@given(function=_functions, side=_sides, seed=_seeds, factor=st.floats(1e-30, 1e30))
def test_a_factor_moves_the_values_and_not_the_ratio(
    function: Function, side: int, seed: int, factor: float
) -> None:
    maps = _random(2, side, side + 3, seed=seed)
    one, scaled = function(maps), function(maps * factor)
    torch.testing.assert_close(scaled.first, one.first * factor, rtol=ANY_GAP, atol=0.0)
    torch.testing.assert_close(scaled.ratio, one.ratio, rtol=2 * ANY_GAP, atol=0.0)


@_quick
@given(function=_functions, height=_sides, width=_sides, seed=_seeds)
def test_order_of_rows_and_columns_and_transposing_do_not_matter(
    function: Function, height: int, width: int, seed: int
) -> None:
    maps = _random(height, width, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(height, generator=generator), torch.randperm(width, generator=generator)
    one = function(maps)
    for other in (function(maps[rows][:, columns]), function(maps.mT)):
        _assert_near(other, one.first, one.second, 2 * ANY_GAP, maps)


@_quick
@given(side=_sides, seed=_seeds, shift=st.floats(-50.0, 50.0))
def test_centred_maps_know_no_offset(side: int, seed: int, shift: float) -> None:
    maps = _random(2, side, side, seed=seed)
    one, moved = centred_spectrum(maps), centred_spectrum(maps + shift)
    _assert_near(moved, one.first, one.second, 2 * ANY_GAP, maps.abs() + abs(shift))


@_quick
@given(height=_sides, width=_sides, seed=_seeds, dtype=_dtypes)
def test_rank_one_maps_have_one_component(height: int, width: int, seed: int, dtype: torch.dtype) -> None:
    rows = _random(height, 1, seed=seed, dtype=dtype)
    map_ = rows * _random(1, width, seed=seed + 1, dtype=dtype)
    got = raw_spectrum(map_)
    assert got.ratio.item() == math.inf
    assert got.first.item() == pytest.approx(map_.double().norm().item(), rel=1e-6)
    # Rows that are constant stay of rank one when the mean goes.
    assert centred_spectrum(rows.expand(height, width)).ratio.item() == math.inf


@_quick
@given(value=st.floats(0.0, 20.0), height=_sides, width=_sides, dtype=_dtypes)
def test_constant_maps_have_no_second_component(
    value: float, height: int, width: int, dtype: torch.dtype
) -> None:
    maps = torch.full((2, height, width), value, dtype=dtype)
    raw, centred = raw_spectrum(maps), centred_spectrum(maps)
    expected = float(maps[0, 0, 0]) * math.sqrt(height * width)
    assert raw.first.tolist() == pytest.approx([expected, expected], rel=1e-12)
    assert centred.first.tolist() == centred.second.tolist() == [0.0, 0.0]
    assert raw.ratio.tolist() == centred.ratio.tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 1, 5), (3, 5, 1), (1, 1), (2, 3, 4, 5)])
def test_shapes_at_the_edge(function: Function, shape: tuple[int, ...]) -> None:
    zero, one = function(torch.zeros(shape)), function(_random(*shape, seed=0))
    assert zero.first.shape == one.ratio.shape == shape[:-2]
    assert (zero.first == 0).all()
    assert (zero.ratio == math.inf).all()
    if 1 in shape[-2:]:
        assert (one.ratio == math.inf).all()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_not_finite_spoils_no_other(function: Function, bad: float) -> None:
    maps = _random(3, 6, 6, seed=0)
    clean = function(maps)
    maps[1, 2, 3] = bad
    got = function(maps)
    assert all(part[1].isnan() for part in got)
    torch.testing.assert_close(got.ratio[[0, 2]], clean.ratio[[0, 2]])


def test_autocast_changes_nothing() -> None:
    maps = _random(2, 8, 8, seed=0, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.float16):
        cast = raw_spectrum(maps)
    assert torch.equal(cast.ratio, raw_spectrum(maps).ratio)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_spectra_refuse_what_are_no_maps(function: Function) -> None:
    for maps in (torch.zeros(4), torch.zeros(2, 0, 4), torch.zeros(2, 4, 0)):
        with pytest.raises(
            KernelInputError, match=r"requires maps \[\.\.\., H, W\] of at least one token, got"
        ):
            function(maps)
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        with pytest.raises(KernelInputError, match=r"requires maps of float32 or float64, got"):
            function(torch.zeros(2, 3, 3, dtype=dtype))
