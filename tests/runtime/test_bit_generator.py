"""A generator in Infinity's manner, end to end: pruned under ``strict``, codes of bits zeroed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.toy_bit_generator import BitTokenizer, BitVAR
from tests.toy_generators import make

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


def test_a_tokenizer_that_the_model_does_not_hold_is_asked_for(words: Tensor) -> None:
    model: Any = make(BitVAR)
    options = {"keep_ratio": 0.5, "start_scale": 3, "strict": True, "entropy_source": "layer-mean"}
    fast: Any = torch.compile(model, backend="toprovar", options=options)
    with pytest.raises(
        toprovar_compiler.errors.UnsupportedGraphError, match=r"model\.tokenizer = \(tokenizer,\)"
    ):
        fast.paint(BitTokenizer(), words, LENGTHS, 2.0)
