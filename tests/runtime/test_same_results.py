"""Rounding is told from another result, by what a block computes with."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from toprovar_compiler.same_results import are_alike, coarsest_eps

ROW = torch.linspace(-4.0, 4.0, 64)
BFLOAT16 = torch.finfo(torch.bfloat16).eps


def _block(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2, dtype=dtype), nn.Embedding(2, 2, dtype=torch.float64).float())


@pytest.mark.parametrize(
    ("dtype", "autocast", "eps"),
    [
        (torch.float32, False, torch.finfo(torch.float32).eps),
        (torch.float32, True, BFLOAT16),
        (torch.bfloat16, False, BFLOAT16),
    ],
)
def test_the_coarsest_of_what_is_computed_with_counts(dtype: torch.dtype, autocast: bool, eps: float) -> None:
    context: Any = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with context:
        assert coarsest_eps(_block(dtype)) == eps
    assert coarsest_eps(nn.Identity()) == 0.0


def _one_apart(share: float) -> torch.Tensor:
    """One number is apart by a share of the largest, 4."""
    other = ROW.clone()
    other[20] += share * 4.0
    return other


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("share", "alike"), [(1e-4, True), (1e-3, False)])
def test_float32_has_half_of_its_digits(share: float, alike: bool, sign: int) -> None:
    assert are_alike(ROW, _one_apart(sign * share), 0.0) is alike


@pytest.mark.parametrize(("units", "alike"), [(1, True), (3, True), (5, False)])
def test_float32_of_bfloat16_has_four_units(units: int, alike: bool) -> None:
    assert are_alike(ROW, _one_apart(units * BFLOAT16), BFLOAT16) is alike


def test_one_large_number_does_not_hide_the_others() -> None:
    row = ROW.clone()
    row[0] = 1e3
    assert are_alike(row, row * (1 + BFLOAT16), BFLOAT16)
    assert not are_alike(row, row + 1.5, BFLOAT16)


def test_formats_to_store_in_are_not_computed_in() -> None:
    block = nn.Linear(2, 2)
    block.weight = nn.Parameter(block.weight.to(torch.float8_e5m2), requires_grad=False)
    assert coarsest_eps(block) == BFLOAT16


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ROW, ROW[1:]),
        (ROW, ROW.double()),
        (ROW, None),
        (ROW, ROW.where(ROW < 4.0, torch.nan)),
        (torch.arange(3), torch.arange(3) + 1),
        (1, 2),
        (1, True),
    ],
)
def test_others_are_not_alike(one: Any, other: Any) -> None:
    assert not are_alike(one, other, BFLOAT16)
    assert not are_alike(other, one, BFLOAT16)


@pytest.mark.parametrize("same", [ROW, torch.arange(3), torch.zeros(0), 1, None, "a"])
def test_what_is_equal_is_alike(same: Any) -> None:
    assert are_alike(same, same, 0.0)
