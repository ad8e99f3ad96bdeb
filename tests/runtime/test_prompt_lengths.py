"""A generator of packed prompts, end to end: prompts of other lengths need no other graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.runtime.recorder import Recorder
from tests.toy_bit_generator import BitTokenizer, BitVAR
from tests.toy_generators import make
from toprovar_compiler import backend

LENGTHS = ((5, 3), (2, 9), (40, 30), (7, 7))


def _paint(model: Any, lengths: Sequence[int]) -> Tensor:
    words = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(sum(lengths)))
    return model.paint(*model.tokenizer, words, lengths, 2.0)


def _model() -> Any:
    model: Any = make(BitVAR, sides=(1, 2, 3))
    model.tokenizer = (BitTokenizer(),)
    return model


def test_prompts_of_other_lengths_are_not_traced_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    captures, capture = [], backend.capture
    monkeypatch.setattr(backend, "capture", lambda gm: captures.append(gm) or capture(gm))
    model = _model()
    expected = [_paint(model, lengths) for lengths in LENGTHS]
    fast = toprovar_compiler.compile(model, policy="dense", strict=True)
    found, traced = [], []
    for lengths in LENGTHS:
        found.append(_paint(fast, lengths))
        traced.append(len(captures))
    toprovar_compiler.restore(model)
    torch.testing.assert_close(found, expected)
    assert traced == traced[:1] * len(LENGTHS)
    assert toprovar_compiler.summary().to_dict()["fallbacks"] == {}


def test_prompts_of_other_lengths_share_the_graphs_of_scales(recorder: Recorder) -> None:
    model = _model()
    short = [lengths for lengths in LENGTHS if sum(lengths) <= 32]
    expected = [_paint(model, lengths) for lengths in short]
    fast = toprovar_compiler.compile(model, mode="reduce-overhead", policy="dense", strict=True)
    for lengths in short:
        _paint(fast, lengths)
    recorder.runs = 0
    found = [_paint(fast, lengths) for lengths in short]
    toprovar_compiler.restore(model)
    torch.testing.assert_close(found, expected)
    assert recorder.runs == len(model.sides) * len(short)
    assert recorder.functions == len(model.sides)
