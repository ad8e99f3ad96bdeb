"""Packed prompts are padded where nobody reads what is behind them, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import toprovar_compiler
from tests.packed_attention import attend_packed
from tests.runtime.driver import Driver
from tests.runtime.recorder import Recorder
from tests.toy_bit_generator import BitTokenizer, BitVAR
from tests.toy_generators import make
from toprovar_compiler import backend
from toprovar_compiler.packed_prompts import PackedPrompts
from toprovar_compiler.session import Session

WIDTH, TOKENS = 8, 3
Prompt = tuple[Tensor, Tensor, int]


class Block(nn.Module):
    """Attends to a packed prompt and counts its calls; ``reads`` sees all words."""

    def __init__(self, reads: bool = False, cache: object = None) -> None:
        super().__init__()
        self.reads, self.cache, self.calls = reads, cache, 0
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, prompt: Prompt) -> Tensor:
        words, offsets, longest = prompt
        self.calls += 1
        keys, values = self.key_value(words).unflatten(-1, (2, 1, WIDTH)).unbind(1)
        x = x + attend_packed(x[:, :, None], keys, values, offsets, longest)
        return x + words.sum(0).cos() if self.reads else x


class Owner:
    session: Session | None = None


class Seen:
    """What a block was given in the end, and what it returned."""

    def __init__(self, block: nn.Module, prompts: PackedPrompts) -> None:
        self.block, self.prompts = block, prompts
        self.given: list[Prompt] = []
        self._run = prompts.padded(block, self._call)

    def _call(self, x: Tensor, prompt: Prompt) -> Tensor:
        self.given.append(prompt)
        return self.block(x, prompt)

    def __call__(self, x: Tensor, prompt: Any) -> Tensor:
        with torch.no_grad():
            return self._run(x, prompt=prompt)


def _seen(block: nn.Module) -> Seen:
    owner = Owner()
    owner.session = Driver(policy="dense").session
    return Seen(block, PackedPrompts([block], owner))


def _prompt(lengths: Sequence[int], seed: int = 0) -> Prompt:
    words = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(seed))
    return words, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths)


def _x(samples: int) -> Tensor:
    return torch.randn(samples, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_results_are_those_of_the_words_that_came(lengths: list[int]) -> None:
    seen, prompt, x = _seen(Block()), _prompt(lengths), _x(len(lengths))
    with torch.no_grad():
        torch.testing.assert_close(seen(x, prompt), seen.block(x, prompt))
    words, offsets, longest = seen.given[0]
    assert len(words) in (64, 128, 256, 512)
    assert len(words) // 2 < max(sum(lengths), 64) <= len(words)
    assert torch.equal(words[: sum(lengths)], prompt[0])
    assert not words[sum(lengths) :].any()
    assert offsets is prompt[1]
    assert longest == 512


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize("lengths", [(5, 3), (32, 32)], ids=str)
@pytest.mark.parametrize("copied", [True, False], ids=["reads all words", "cannot be copied"])
def test_a_block_that_is_not_known_to_leave_them_unread_gets_what_came(
    copied: bool, lengths: tuple[int, ...]
) -> None:
    block = Block(reads=copied, cache=None if copied else (each for each in ()))
    seen, prompt, x = _seen(block), _prompt(lengths), _x(2)
    with torch.no_grad():
        expected = block(x, prompt)
    for _ in range(2):
        assert torch.equal(seen(x, prompt), expected)
    assert all(given is prompt for given in seen.given)
    session = seen.prompts.owner.session
    assert session is not None
    ((reason, count),) = session.counters.fallbacks.items()
    assert "with words behind those of the prompts a block " in reason
    assert ("gives other results" if copied else "raises TypeError: cannot pickle") in reason
    assert count == 1, "asked for once"


@pytest.mark.parametrize(
    "change",
    [
        lambda words, offsets, longest: (words, offsets),
        lambda words, offsets, longest: (words, offsets.long(), longest),
        lambda words, offsets, longest: (words[None], offsets, longest),
        lambda words, offsets, longest: (words, offsets, float(longest)),
        lambda words, offsets, longest: (words, offsets, len(words) + 1),
        lambda words, offsets, longest: (words.long(), offsets, longest),
        lambda words, offsets, longest: words,
    ],
)
def test_near_misses_are_left_alone(change: Any) -> None:
    given, got = change(*_prompt((5, 3))), []
    block = Block()
    PackedPrompts([block], Owner()).padded(block, lambda *a, **named: got.append((a, named)))(given, p=given)
    ((arguments, named),) = got
    assert arguments[0] is given
    assert named["p"] is given


def test_the_check_changes_nothing_of_the_block() -> None:
    seen = _seen(Block(cache=torch.zeros(2)))
    seen(_x(2), _prompt((5, 3)))
    assert seen.block.calls == 1, "its copies counted for themselves"


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_words_that_a_model_writes_over_are_seen(guard: Any) -> None:
    """The first block of each scale asks again, those behind it only where a tensor has a version."""
    blocks = [Block(), Block()]
    prompts, got = PackedPrompts(blocks, Owner()), []
    calls = [prompts.padded(block, lambda x, prompt: got.append(prompt[0])) for block in blocks]
    with guard():
        words, offsets, longest = _prompt((5, 3))
        for _ in range(2):
            for call in calls:
                call(_x(2), (words, offsets, longest))
            assert torch.equal(got[-2][: len(words)], words)
            assert got[-1] is got[-2], "compared by its identity"
            words.mul_(-1)
        if not words.is_inference():
            calls[1](_x(2), (words, offsets, longest))
            assert torch.equal(got[-1][: len(words)], words)


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
