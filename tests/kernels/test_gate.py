"""The entropy gate against its token-by-token definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toprovar_compiler.kernels import ops  # noqa: F401  (registers the operator)
from toprovar_compiler.kernels.gate import entropy_gate_reference

gate = torch.ops.toprovar.entropy_gate

# Few values, so that ties are common.
VALUES = st.sampled_from([0.0, 0.5, 1.0, 2.0, -0.0, -1.0, math.inf, -math.inf, math.nan])


@st.composite
def maps(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    tokens = draw(st.integers(0, 12))
    rows = draw(st.lists(st.lists(VALUES, min_size=tokens, max_size=tokens), min_size=1, max_size=3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    return torch.tensor(rows, dtype=dtype).reshape(len(rows), tokens), draw(st.integers(0, tokens))


@given(maps())
def test_matches_its_definition(case: tuple[torch.Tensor, int]) -> None:
    entropy, keep = case
    index = gate(entropy, keep)
    assert index.dtype == torch.int64
    assert torch.equal(index, entropy_gate_reference(entropy, keep))


def test_order_ties_and_bad_values() -> None:
    entropy = torch.tensor([[3.0, 1.0, math.nan, 1.0, 2.0, math.inf], [0.0, 0.0, 0.0, 0.0, 0.0, -math.inf]])
    assert gate(entropy, 3).tolist() == [[1, 3, 4], [0, 1, 2]]
    assert gate(entropy, 5).tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert gate(entropy, 6).tolist() == [list(range(6))] * 2


@pytest.mark.parametrize("tokens", [1024, 4096])
def test_long_rows(tokens: int) -> None:
    entropy = torch.rand(4, tokens, generator=torch.Generator().manual_seed(0)).half()
    index = gate(entropy, tokens // 3)
    assert torch.equal(index, entropy_gate_reference(entropy, tokens // 3))


def test_strided_map() -> None:
    entropy = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gate(entropy.t(), 5), gate(entropy.t().contiguous(), 5))
