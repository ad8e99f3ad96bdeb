"""Packed prompts are padded where nobody reads what is behind them, and only there."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.packed_attention import attend_packed
from tests.runtime.driver import Driver
from toprovar_compiler import packed_prompts
from toprovar_compiler.packed_prompts import PackedPrompts
from toprovar_compiler.packed_words import is_packed
from toprovar_compiler.session import Session

WIDTH, TOKENS = 8, 3
Prompt = tuple[Tensor, Tensor, int]


class Block(nn.Module):
    """Attends to a packed prompt, keeps its streams in a list, and draws a random number."""

    def __init__(self, reads: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.reads = reads
        self.kept: list[Tensor] = []
        self.register_buffer("calls", torch.zeros(()))
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, prompt: Prompt, kept: list[Tensor] | None = None, scale: int = 0) -> Tensor:
        words, offsets, longest = prompt
        self.calls += 1
        self.kept.append(x)
        if kept is not None:
            kept.append(x)
        keys, values = self.key_value(words).unflatten(-1, (2, 1, WIDTH)).unbind(1)
        x = x + attend_packed(x[:, :, None], keys, values, offsets, longest) + torch.rand(())
        return x if self.reads is None or scale == 1 else x + self.reads(words)


class Owner:
    session: Session | None = None


class Seen:
    """What blocks were given in the end."""

    def __init__(self, *blocks: nn.Module) -> None:
        self.blocks, owner = blocks, Owner()
        self.driver = Driver(policy="dense")
        self.driver.scale(1)
        owner.session = self.session = self.driver.session
        self.given: list[Prompt] = []
        prompts = PackedPrompts(blocks, owner)
        self._calls = [prompts.padded(block, functools.partial(self._call, block)) for block in blocks]

    def _call(self, block: nn.Module, x: Tensor, prompt: Prompt, **named: Any) -> Any:
        self.given.append(prompt)
        return block(x, prompt, **named)

    def __call__(self, x: Tensor, prompt: Any, at: int = 0, **named: Any) -> Any:
        torch.manual_seed(7)
        with torch.no_grad():
            return self._calls[at](x, prompt=prompt, **named)

    def plain(self, x: Tensor, prompt: Any, at: int = 0) -> Any:
        torch.manual_seed(7)
        with torch.no_grad():
            return copy.deepcopy(self.blocks[at])(x, prompt)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(self.session.counters.fallbacks)


def _prompt(lengths: Sequence[int], seed: int = 0) -> Prompt:
    words = torch.randn(sum(lengths), WIDTH, generator=torch.Generator().manual_seed(seed))
    return words, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths)


def _x(samples: int) -> Tensor:
    return torch.randn(samples, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


@given(st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_results_are_those_of_the_words_that_came(lengths: list[int]) -> None:
    seen, prompt, x = Seen(Block()), _prompt(lengths), _x(len(lengths))
    torch.testing.assert_close(seen(x, prompt), seen.plain(x, prompt))
    words, offsets, longest = seen.given[0]
    assert len(words) in (64, 128, 256, 512)
    assert len(words) // 2 < max(sum(lengths), 64) <= len(words)
    assert torch.equal(words[: sum(lengths)], prompt[0])
    assert not words[sum(lengths) :].any()
    assert offsets is prompt[1]
    assert longest == 512
    assert seen.reasons == {}


READS = {
    "sum": lambda words: words.sum(0),
    "mean": lambda words: words.mean(0),
    "maximum": lambda words: words.amax(0),
    "minimum": lambda words: words.amin(0),
    "last": lambda words: words[-1],
    "number": lambda words: torch.tensor(float(len(words))),
}


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize("lengths", [(5, 3), (32, 32)], ids=str)
@pytest.mark.parametrize("outlier", [0.0, 1e4])
@pytest.mark.parametrize("reads", READS)
def test_a_block_that_reads_them_gets_what_came(reads: str, outlier: float, lengths: tuple[int, ...]) -> None:
    seen, prompt, x = Seen(Block(READS[reads])), _prompt(lengths), _x(2)
    x[0, 0, 0] += outlier
    for _ in range(2):
        assert torch.equal(seen(x, prompt), seen.plain(x, prompt))
    assert all(given is prompt for given in seen.given)
    ((reason, count),) = seen.reasons.items()
    assert reason.endswith("with words behind those of the prompts a block gives other results")
    assert count == 1, "once a generation"
    seen.driver.generate((1, 4))
    seen(x, prompt)
    assert seen.reasons[reason] == 2


@pytest.mark.filterwarnings("ignore:toprovar")
def test_another_block_of_the_class_and_another_number_are_looked_at_too() -> None:
    seen, prompt, x = Seen(Block(), Block(READS["mean"])), _prompt((5, 3)), _x(2)
    seen(x, prompt)
    seen(x, prompt, at=1, scale=1)
    assert [given is prompt for given in seen.given] == [False, False]
    assert torch.equal(seen(x, prompt, at=1), seen.plain(x, prompt, at=1))


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize("reads", [None, READS["mean"]])
def test_a_number_that_is_another_each_time_is_not_looked_at_for_ever(
    reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    check = packed_prompts.why_not_padded
    monkeypatch.setattr(packed_prompts, "why_not_padded", lambda *given: tried.append(1) or check(*given))
    seen, prompt, x = Seen(Block(reads)), _prompt((5, 3)), _x(2)
    for number in range(100):
        seen(x, prompt, scale=number)
    assert len(tried) == 64
    # It reads nothing at scale 1 alone.
    assert [given is prompt for given in seen.given] == [reads is not None and n != 1 for n in range(100)]


def _replace_forward(block: Any) -> None:
    forward = block.forward
    block.forward = lambda *arguments, **named: forward(*arguments, **named)


ATTACHED = {
    "forward": _replace_forward,
    "forward of a part": lambda block: _replace_forward(block.key_value),
    "hook": lambda block: block.register_forward_hook(lambda *_: None),
    "hook before a part": lambda block: block.key_value.register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize("attached", ATTACHED)
def test_what_a_copy_would_share_is_not_tried_out(attached: str) -> None:
    block = Block()
    ATTACHED[attached](block)
    seen, prompt = Seen(block), _prompt((5, 3))
    seen(_x(2), prompt)
    assert seen.given[0] is prompt
    assert len(block.kept) == 1
    ((reason, _),) = seen.reasons.items()
    assert "functions that were attached to it" in reason


@pytest.mark.filterwarnings("ignore:toprovar")
@pytest.mark.parametrize(
    "odd", [(each for each in ()), {"results": [object()]}], ids=["cannot be copied", "odd"]
)
def test_what_cannot_be_tried_out_gets_what_came(odd: Any) -> None:
    block = Block()
    block.odd = odd
    seen, prompt = Seen(block), _prompt((5, 3))
    seen(_x(2), prompt)
    assert (seen.given[0] is prompt) is (not isinstance(odd, dict))


@dataclass
class Result:
    stream: Tensor


class Odd(Block):
    """Its results are no tensors, and cannot be compared."""

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return Result(super().forward(*arguments, **named))


@pytest.mark.filterwarnings("ignore:toprovar")
def test_results_that_cannot_be_compared_are_a_reason() -> None:
    seen, prompt = Seen(Odd()), _prompt((5, 3))
    assert isinstance(seen(_x(2), prompt), Result)
    assert seen.given[0] is prompt
    assert [reason.partition(" raises ")[2][:12] for reason in seen.reasons] == ["RuntimeError"]


def _near_misses() -> Iterator[Any]:
    words, offsets, longest = _prompt((5, 3))
    yield words, offsets
    yield words, offsets.long(), longest
    yield words[None], offsets, longest
    yield words, offsets, float(longest)
    yield words, offsets, len(words) + 1
    yield words, offsets, 0
    yield words, offsets[None], longest
    yield words.long(), offsets, longest
    yield words, None, longest
    yield words
    yield {"words": words, "offsets": offsets, "longest": longest}


@pytest.mark.parametrize("value", list(_near_misses()))
def test_near_misses_are_no_prompts(value: Any) -> None:
    assert is_packed(_prompt((5, 3)))
    assert is_packed(list(_prompt((5, 3))))
    assert not is_packed(value)


def test_trying_it_out_changes_nothing() -> None:
    seen, x = Seen(Block()), _x(2)
    kept: list[Tensor] = []
    seen(x, _prompt((5, 3)), kept=kept)
    block = seen.blocks[0]
    assert [len(block.kept), len(kept), int(block.calls)] == [1, 1, 1]
    assert block.kept[0] is kept[0] is x


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_words_that_a_model_writes_over_are_seen(guard: Any) -> None:
    """The first block of each scale asks again, those behind it only where a tensor has a version."""
    blocks = [nn.Identity(), Block(), Block()]
    prompts, got = PackedPrompts(blocks, Owner()), []
    calls = [prompts.padded(block, lambda x, prompt=((),): got.append(prompt[0])) for block in blocks]
    with guard():
        words, offsets, longest = _prompt((5, 3))
        for _ in range(2):
            calls[0](_x(2))
            for call in calls[1:]:
                call(_x(2), (words[:], offsets, longest))
            assert torch.equal(got[-2][: len(words)], words)
            assert got[-1] is got[-2], "compared by its identity"
            words.mul_(-1)
        if not words.is_inference():
            calls[1](_x(2), (words, offsets, longest))
            assert torch.equal(got[-1][: len(words)], words)
