"""The bound of A.5 by its formula, and what its shares are for what the paper prunes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_compiler.errors import KernelInputError, OptionError
from toprovar_compiler.policies.error_bound import error_bound, pruned_entropy_share, pruned_score_share

GIVEN: dict[str, Any] = {
    "rho": 0.4,
    "picture_energy": 10.0,
    "layer_shares": [0.5, 0.25],
    "layer_energies": [4.0, 8.0],
    "token_share": 0.3,
    "token_energy": 20.0,
}

_quick = settings(deadline=None, max_examples=60)
_weights = st.lists(st.floats(0.0, 8.0), min_size=2, max_size=12)


def test_the_bound_is_the_sum_of_its_terms() -> None:
    bound = error_bound(**GIVEN)
    assert bound == pytest.approx((6.0, 4.0, 6.0))
    assert bound.total == pytest.approx(16.0)


def test_nothing_pruned_has_a_bound_of_zero() -> None:
    bound = error_bound(**GIVEN | {"rho": None, "layer_shares": [], "layer_energies": [], "token_share": 0.0})
    assert bound.total == 0.0


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("name", ["rho", "layer_shares", "token_share"])
def test_shares_out_of_range_are_refused(name: str, value: float) -> None:
    wrong = [0.5, value] if name == "layer_shares" else value
    with pytest.raises(OptionError, match=rf"{name}.* requires a number in \[0, 1\], got"):
        error_bound(**GIVEN | {name: wrong})


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["picture_energy", "layer_energies", "token_energy"])
def test_energies_out_of_range_are_refused(name: str, value: float) -> None:
    wrong = [4.0, value] if name == "layer_energies" else value
    with pytest.raises(OptionError, match=rf"{name}.* requires a finite number of at least 0, got"):
        error_bound(**GIVEN | {name: wrong})


def test_the_place_of_a_wrong_number_is_named() -> None:
    with pytest.raises(OptionError, match=r"layer_shares\[1\] requires"):
        error_bound(**GIVEN | {"layer_shares": [0.5, 2.0]})
    with pytest.raises(OptionError, match="one layer energy for each layer share, got 1 for 2"):
        error_bound(**GIVEN | {"layer_energies": [4.0]})


@_quick
@given(scores=_weights, seed=st.integers(0, 99))
def test_layer_share_is_eq_22(scores: list[float], seed: int) -> None:
    pruned = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed)) < 0.5
    share = pruned_score_share(torch.tensor([scores], dtype=torch.float64), pruned[None])
    weights = scores if sum(scores) > 0 else [1.0] * len(scores)
    lost = sum(weight for weight, gone in zip(weights, pruned.tolist(), strict=True) if gone)
    assert share.shape == (1,)
    assert share.item() == pytest.approx(lost / sum(weights))
    assert 0.0 <= share.item() <= 1.0


def test_pruning_every_detail_layer_discards_nearly_all_of_the_score() -> None:
    # A.5.2 says that gamma_s stays small since Global layers, of scores near 0, are kept: it does not.
    scores = torch.tensor([0.01, 0.01, 0.9, 0.95, 0.9, 0.01])
    assert pruned_score_share(scores, scores > 0.5).item() > 0.98


@_quick
@given(entropy=_weights, data=st.data())
def test_token_share_is_eq_27(entropy: list[float], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.integers(0, len(entropy) - 1), unique=True, min_size=1))
    share = pruned_entropy_share(torch.tensor([entropy], dtype=torch.float64), torch.tensor([kept]))
    weights = entropy if sum(entropy) > 0 else [1.0] * len(entropy)
    lost = sum(weight for token, weight in enumerate(weights) if token not in kept)
    assert share.item() == pytest.approx(lost / sum(weights))


@_quick
@given(entropy=_weights, data=st.data())
def test_pruning_high_entropies_discards_at_least_the_share_of_tokens(
    entropy: list[float], data: st.DataObject
) -> None:
    # A.5.3 says that gamma is significantly smaller than the share of tokens pruned: it never is.
    keep = data.draw(st.integers(1, len(entropy)))
    kept = torch.tensor(entropy).argsort()[None, :keep]
    share = pruned_entropy_share(torch.tensor([entropy], dtype=torch.float64), kept)
    assert share.item() >= 1.0 - keep / len(entropy) - 1e-6


def test_rows_have_shares_of_their_own() -> None:
    entropy = torch.tensor([[1.0, 1.0, 2.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-1e-7, 1.0, 1.0]])
    kept = torch.tensor([[0, 1], [1, 2], [0, 2], [1, 2]])
    assert pruned_entropy_share(entropy, kept).tolist() == pytest.approx([0.5, 1.0, 1 / 3, 0.0])


def test_keeping_all_discards_nothing_and_keeping_none_all() -> None:
    entropy = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    every = torch.arange(50).expand(2, 50)
    assert pruned_entropy_share(entropy, every).tolist() == [0.0, 0.0]
    assert pruned_entropy_share(entropy, every[:, :0]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_give_a_share_that_the_bound_refuses(bad: float) -> None:
    share = pruned_entropy_share(torch.tensor([[1.0, bad], [1.0, 3.0]]), torch.tensor([[1], [1]]))
    assert share[0].isnan()
    assert share[1] == 0.25
    with pytest.raises(OptionError, match="token_share requires"):
        error_bound(**GIVEN | {"token_share": share[0].item()})


def test_shares_refuse_other_shapes_and_dtypes() -> None:
    scores, mask = torch.ones(3), torch.zeros(3, dtype=torch.bool)
    for args in ((scores, mask[:2]), (scores, mask.long())):
        with pytest.raises(KernelInputError, match=r"requires a bool mask of the scores' shape \[3\], got"):
            pruned_score_share(*args)
    for args in ((scores[:0], mask[:0]), (scores.long(), mask)):
        with pytest.raises(KernelInputError, match="pruned_score_share requires floating numbers"):
            pruned_score_share(*args)
    entropy, kept = torch.ones(2, 3), torch.zeros(2, 1, dtype=torch.int64)
    for args in ((entropy[0], kept), (entropy, kept[0]), (entropy, kept[:1])):
        with pytest.raises(KernelInputError, match="of the same rows, got"):
            pruned_entropy_share(*args)
    with pytest.raises(KernelInputError, match="int64 indices, got torch.int32"):
        pruned_entropy_share(entropy, kept.int())
    with pytest.raises(KernelInputError, match="pruned_entropy_share requires floating numbers"):
        pruned_entropy_share(entropy[:, :0], kept[:, :0])
