"""A generator in Infinity's manner, end to end: pruned under ``strict``, codes of bits zeroed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.toy_bit_generator import BitTokenizer, BitVAR
from tests.toy_generators import make
from toprovar_compiler import shared_variants

LENGTHS = (5, 3)


@pytest.fixture
def words() -> Tensor:
    return torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(4))


def _summary(model: object) -> dict[str, Any]:
    return toprovar_compiler.summary(model).to_dict()


def test_it_is_pruned_and_its_bits_are_zeroed(words: Tensor) -> None:
    model: Any = make(BitVAR)
    tokenizer = BitTokenizer()
    eager = model.paint(tokenizer, words, LENGTHS, 2.0)
    model.tokenizer = (tokenizer,)
    options = {"keep_ratio": 0.5, "start_scale": 3, "strict": True, "entropy_source": "layer-mean"}
    fast: Any = torch.compile(model, backend="toprovar", options=options)
    zero: list[Tensor] = []
    plain = tokenizer.vectors
    tokenizer.vectors = lambda bits: (zero.append((v := plain(bits)) == 0), v)[1]  # type: ignore[method-assign]
    pictures = [fast.paint(tokenizer, words, LENGTHS, 2.0) for _ in range(2)]

    shares = [float(each.float().mean()) for each in zero[: len(model.sides)]]
    assert shares == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[0], eager)
    data = _summary(fast)
    assert data["fallbacks"] == {}
    assert data["recompiles"] == 0
    computed = [each["tokens_computed"] / each["tokens_total"] for each in data["per_scale"]]
    assert computed == [1.0, 1.0, 1.0, 0.5, 0.5]


PRUNED = {"keep_ratio": 0.5, "start_scale": 2, "entropy_source": "layer-mean"}


@pytest.mark.parametrize("options", [{"policy": "dense"}, PRUNED])
def test_scales_that_differ_in_a_number_share_what_is_compiled(
    words: Tensor, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block knows its scale as a number, so that Dynamo traces it for each: two more compile nothing."""
    shared = [_painted(words, sides, options) for sides in (range(1, 7), range(1, 9))]
    assert shared[0][1] == shared[1][1]
    # Without inputs for numbers, graphs of different numbers are different.
    monkeypatch.setattr(shared_variants, "_groups", lambda own, known: ())
    picture, graphs = _painted(words, range(1, 9), options)
    assert graphs > shared[1][1]
    torch.testing.assert_close(shared[1][0], picture)


def _painted(words: Tensor, sides: range, options: dict[str, Any]) -> tuple[Tensor, int]:
    """The second picture of a new model, and how many graphs were compiled."""
    torch._dynamo.reset()
    model: Any = make(BitVAR, sides=tuple(sides))
    model.tokenizer = (BitTokenizer(),)
    fast: Any = torch.compile(model, backend="toprovar", options={"strict": True, **options})
    for _ in range(2):
        picture = fast.paint(*model.tokenizer, words, LENGTHS, 2.0)
    return picture, _summary(fast)["graphs"]


def test_a_tokenizer_that_the_model_does_not_hold_is_asked_for(words: Tensor) -> None:
    model: Any = make(BitVAR)
    options = {"keep_ratio": 0.5, "start_scale": 3, "strict": True, "entropy_source": "layer-mean"}
    fast: Any = torch.compile(model, backend="toprovar", options=options)
    with pytest.raises(
        toprovar_compiler.errors.UnsupportedGraphError, match=r"model\.tokenizer = \(tokenizer,\)"
    ):
        fast.paint(BitTokenizer(), words, LENGTHS, 2.0)
