"""Halves of what a call is given, which are remembered."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.batch_rows import Halves


def _half(halves: Halves, value: object, rows: int = 4) -> Tensor:
    (half,), named = halves.of_call((value,), {}, rows)
    assert named == {}
    return half


def test_the_same_half_as_long_as_somebody_holds_it() -> None:
    halves, condition = Halves(), torch.randn(4, 3)
    half = _half(halves, condition)
    assert torch.equal(half, condition[:2])
    assert _half(halves, condition) is half
    kept = half.data_ptr()
    del half
    assert _half(halves, condition).data_ptr() == kept


def test_a_half_follows_what_is_done_to_its_tensor() -> None:
    halves, condition = Halves(), torch.zeros(4, 3)
    half = _half(halves, condition)
    condition.add_(1)
    assert _half(halves, condition) is half
    assert torch.equal(half, torch.ones(2, 3))


def test_another_tensor_of_the_same_identity_has_a_half_of_its_own() -> None:
    halves, held = Halves(), []
    with torch.inference_mode():  # where a view does not keep its tensor alive
        for number in range(600):
            held.append(_half(halves, torch.full((4, 3), float(number))))
    assert [half[0, 0].item() for half in held] == list(range(600))


def test_other_rows_and_other_values_are_left_as_they_are() -> None:
    halves, table = Halves(), torch.randn(6, 3)
    assert _half(halves, table) is table
    assert torch.equal(_half(halves, table, rows=6), table[:3])
    assert _half(halves, table) is table
    nested = halves.of_call((), {"pair": (torch.ones(4), 7)}, 4)[1]["pair"]
    assert nested[0].shape == (2,)
    assert nested[1] == 7
