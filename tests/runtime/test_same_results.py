"""Rounding is told from another result, by what a block computes with."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from toprovar_compiler.same_results import are_alike, coarseness

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
        assert coarseness(_block(dtype)) == eps
    assert coarseness(nn.Identity()) == 0.0


@pytest.mark.parametrize(("coarse", "share", "alike"), [(0, 1e-4, True), (0, 1e-3, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_float32_has_half_of_its_digits(coarse: float, share: float, alike: bool, sign: int) -> None:
    assert are_alike(ROW, ROW + sign * share * 4.0, coarse) is alike


@pytest.mark.parametrize(("units", "alike"), [(1, True), (3, True), (5, False)])
def test_float32_of_bfloat16_has_four_units(units: int, alike: bool) -> None:
    assert are_alike(ROW, ROW + units * BFLOAT16 * 4.0, BFLOAT16) is alike


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
