"""The low-entropy ratio and the start depth, against their definitions in whole numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toprovar_compiler.errors import KernelInputError, OptionError
from toprovar_compiler.options import Crossing
from toprovar_compiler.policies.scale_depth import batch_depth, low_entropy_ratio, start_depth

CROSSINGS: tuple[Crossing, ...] = ("at-least", "at-most")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

_quick = settings(deadline=None, max_examples=60)
_maps = st.lists(st.integers(0, 200), min_size=1, max_size=40)
_ratios = st.lists(st.sampled_from([i / 20 for i in range(20)]), min_size=1, max_size=8)


def _ratio_in_whole_numbers(values: list[int]) -> float:
    mean = Fraction(sum(values), len(values))
    return sum(value < mean for value in values) / len(values)


def _depth_by_hand(ratios: list[float], tau: float, crossing: Crossing) -> int:
    for scale, ratio in enumerate(ratios):
        if ratio >= tau if crossing == "at-least" else ratio <= tau:
            return scale
    return len(ratios)


@_quick
@given(values=_maps, dtype=st.sampled_from(DTYPES))
def test_ratio_is_eq_3(values: list[int], dtype: torch.dtype) -> None:
    ratio = low_entropy_ratio(torch.tensor(values).to(dtype) / 32)
    assert ratio.dtype == torch.float64
    assert ratio.item() == _ratio_in_whole_numbers(values)
    assert 0.0 <= ratio.item() < 1.0


@_quick
@given(value=st.floats(1e-6, 20.0), tokens=st.integers(1, 300), dtype=st.sampled_from(DTYPES))
def test_equal_entropies_have_none_below_the_mean(value: float, tokens: int, dtype: torch.dtype) -> None:
    assert low_entropy_ratio(torch.full((tokens,), value, dtype=dtype)).item() == 0.0


@_quick
@given(values=_maps, seed=st.integers(0, 99), shift=st.integers(-5, 5), power=st.integers(-8, 8))
def test_ratio_knows_no_order_offset_or_unit(values: list[int], seed: int, shift: int, power: int) -> None:
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    entropy = torch.tensor(values, dtype=torch.float64)
    assert low_entropy_ratio((entropy[order] + shift) * 2.0**power) == low_entropy_ratio(entropy)


def test_ratio_of_a_batch_is_that_of_each_alone() -> None:
    entropy = torch.rand(7, 3, 1024, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([low_entropy_ratio(row) for row in entropy.flatten(0, 1)]).reshape(7, 3)
    assert torch.equal(low_entropy_ratio(entropy), alone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_map_that_is_not_finite_has_no_ratio_and_reaches_no_threshold(bad: float) -> None:
    entropy = torch.tensor([[1.0, 2.0, 4.0], [1.0, bad, 4.0], [bad, bad, bad]])
    ratio = low_entropy_ratio(entropy)
    assert ratio[0] == 2 / 3
    assert ratio[1:].isnan().all()
    for crossing in CROSSINGS:
        assert start_depth(ratio[1:, None], 0.4, crossing).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("entropy", "words"),
    [
        (torch.tensor(1.0), "at least one token"),
        (torch.zeros(2, 0), "at least one token"),
        (torch.zeros(2, 3, dtype=torch.int64), "floating"),
    ],
)
def test_ratio_refuses_what_is_no_map(entropy: Tensor, words: str) -> None:
    with pytest.raises(KernelInputError, match=f"requires .*{words}.*got"):
        low_entropy_ratio(entropy)


@_quick
@given(
    ratios=_ratios,
    tau=st.sampled_from([0.0, 0.3, 0.4, 0.45, 1.0]),
    crossing=st.sampled_from(CROSSINGS),
)
def test_depth_is_the_first_scale_that_reaches_tau(
    ratios: list[float], tau: float, crossing: Crossing
) -> None:
    rho = torch.tensor([ratios], dtype=torch.float64)
    depth = start_depth(rho, tau, crossing)
    assert depth.tolist() == [_depth_by_hand(ratios, tau, crossing)]
    for run in range(1, len(ratios) + 1):
        assert start_depth(rho[:, :run], tau, crossing).item() == min(int(depth), run)


@_quick
@given(rows=st.lists(_ratios, min_size=1, max_size=5), crossing=st.sampled_from(CROSSINGS))
def test_in_a_batch_each_sample_has_its_own_depth_and_the_last_rules(
    rows: list[list[float]], crossing: Crossing
) -> None:
    scales = min(map(len, rows))
    rho = torch.tensor([row[:scales] for row in rows], dtype=torch.float64)
    depths = start_depth(rho, 0.4, crossing)
    assert depths.tolist() == [start_depth(row[None], 0.4, crossing).item() for row in rho]
    assert batch_depth(depths).item() == max(depths.tolist())


def test_the_two_directions() -> None:
    rho = torch.tensor([[0.5, 0.45, 0.3, 0.42]])
    assert start_depth(rho, 0.4, "at-least").tolist() == [0]
    assert start_depth(rho, 0.4, "at-most").tolist() == [2]
    assert start_depth(rho[:, 2:], 0.4, "at-least").tolist() == [1]
    assert start_depth(rho[:, 3:], 0.4, "at-most").tolist() == [1]


@pytest.mark.parametrize("crossing", CROSSINGS)
def test_a_ratio_of_exactly_tau_reaches_it(crossing: Crossing) -> None:
    rho = low_entropy_ratio(torch.tensor([[1.0, 1.0, 5.0, 5.0, 5.0]]))[:, None]
    assert start_depth(rho, 0.4, crossing).tolist() == [0]


def test_a_ratio_of_low_precision_is_held_against_tau_itself() -> None:
    rho = torch.tensor([[0.4]], dtype=torch.bfloat16)  # 0.400390625
    assert start_depth(rho, 0.4001, "at-least").tolist() == [0]
    assert start_depth(rho, 0.4001, "at-most").tolist() == [1]


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan"), float("inf")])
def test_depth_refuses_a_tau_out_of_range(tau: float) -> None:
    with pytest.raises(OptionError, match=r"tau requires a number in \[0, 1\], got"):
        start_depth(torch.zeros(1, 1), tau)


def test_depth_refuses_other_options() -> None:
    with pytest.raises(OptionError, match="crossing requires 'at-least' or 'at-most', got 'above'"):
        start_depth(torch.zeros(1, 1), 0.4, "above")  # type: ignore[arg-type]


@pytest.mark.parametrize("rho", [torch.zeros(3), torch.zeros(3, 0), torch.zeros(3, 2, dtype=torch.int64)])
def test_depth_refuses_what_are_no_ratios(rho: Tensor) -> None:
    with pytest.raises(KernelInputError, match=r"requires floating ratios \[B, S\]"):
        start_depth(rho, 0.4)


@pytest.mark.parametrize("depths", [torch.tensor(1), torch.zeros(0, dtype=torch.int64)])
def test_a_batch_has_samples(depths: Tensor) -> None:
    with pytest.raises(KernelInputError, match="at least one sample"):
        batch_depth(depths)
