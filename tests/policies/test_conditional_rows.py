"""Blocks on the conditional rows alone: models whose head sees the prompt, and blocks that deceive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toprovar_compiler
from examples.emojivar import model as emojivar
from examples.emojivar.config import Config
from tests.policies.conftest import Save
from tests.toy_generators import AdaBlock, ClassVAR, CrossBlock, make
from toprovar_compiler.conditional_rows import ConditionalRows
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.generation import Generation
from toprovar_compiler.launches import EachCall
from toprovar_compiler.policies.skipvar import SkipvarPolicy
from toprovar_compiler.policies.skipvar_fit import constant

SIDES = (1, 2, 3, 4, 6)
SMALL = Config(
    patch_nums=SIDES, width=32, depth=2, heads=2, codes=32, code_width=4, tokenizer_widths=(8, 8, 8)
)


@pytest.fixture(scope="module")
def painter() -> Any:
    """An untrained EmojiVAR in float64 none of whose weights is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = emojivar.EmojiVAR(SMALL).double().eval()
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def test_modules_behind_the_blocks_get_the_conditional_rows_twice(
    painter: Any, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, settings = ["a red mug", "a cat"], {"seed": 3, "greedy_from": 1, "guidance": 2.5}
    path = save(painter, replace=constant(2))
    compiled = torch.compile(painter, backend="toprovar", options={"policy": "skipvar", "decisions": path})
    picture = compiled.generate(prompts, **settings)
    dense = painter.generate(prompts, **settings)
    guide = emojivar.guide

    def late(logits: Tensor, guidance: float) -> Tensor:
        return logits.chunk(2)[0] if logits.shape[1] >= 16 else guide(logits, guidance)

    monkeypatch.setattr(emojivar, "guide", late)
    torch.testing.assert_close(picture, painter.generate(prompts, **settings))
    assert not torch.allclose(picture, dense), "replacing changes this picture"
    data = toprovar_compiler.summary(compiled).to_dict()
    assert data["fallbacks"] == {}
    assert [r["tokens_total"] // r["tokens_computed"] for r in data["per_scale"]] == [1, 1, 1, 2, 2]


class TableBlock(AdaBlock):
    """Holds a table whose first dimension is no batch, but may be as long."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.table = torch.tensor([[0.5] * width, [2.0] * width], dtype=torch.float64)

    def forward(self, x: Tensor, cond_BD: Tensor) -> Tensor:
        return super().forward(x * self.table[0], cond_BD) * self.table[1]


class TableVAR(ClassVAR):
    block_type = TableBlock


@pytest.mark.filterwarnings("ignore:toprovar")
def test_rows_that_deceive_are_found_out_and_nothing_is_replaced(labels: Tensor, save: Save) -> None:
    model = make(TableVAR, dtype=torch.float64)
    options = {"policy": "skipvar", "decisions": save(model, replace=constant(2))}
    compiled = torch.compile(model, backend="toprovar", options=options)
    alone = compiled.autoregressive_infer_cfg(labels[:1])
    torch.testing.assert_close(alone, model.autoregressive_infer_cfg(labels[:1]))
    ((reason, times),) = toprovar_compiler.summary(compiled).to_dict()["fallbacks"].items()
    assert reason.startswith(
        "the unconditional branch was not replaced: on the conditional rows alone a block raises"
    )
    assert times == 2, "at both scales"
    assert all(block.table.shape == (2, 32) for block in model.blocks)
    strict = torch.compile(model, backend="toprovar", options=options | {"strict": True})
    with pytest.raises(UnsupportedGraphError, match="unconditional branch was not replaced"):
        strict.autoregressive_infer_cfg(labels[:1])


class _Running:
    """A session at a scale of four tokens whose unconditional rows are replaced."""

    def __init__(self, rows: int, per_sample: int) -> None:
        self.session, self.schedule, self.reasons = self, (1, 4), []
        self.generation = Generation(per_sample)
        self.generation.rows, self.generation.replaces_at = rows, 1
        self.fall_back = self.reasons.append
        self.launcher, self.policy = EachCall(), SkipvarPolicy


def test_caches_that_are_passed_along_are_halved_and_repeated() -> None:
    block = CrossBlock(32, 4).double()
    running = _Running(rows=4, per_sample=2)
    x, text, past = (
        torch.rand(4, 4, 32).double(),
        torch.rand(4, 3, 32).double(),
        torch.rand(4, 4, 5, 8).double(),
    )
    rope = (torch.rand(4, 4).double(), torch.rand(4, 4).double())  # as many tokens as rows: it deceives
    batches = []

    def spy(*arguments: Any) -> Any:
        batches.append(len(arguments[0]))
        return block(*arguments)

    call = ConditionalRows([block], running).halved(block, spy)
    for deceives in (True, False):
        given_rope = rope if deceives else tuple(part[:1] for part in rope)
        y, (k, v) = call(x, text, given_rope, (past, past))
        wanted = block(x, text, given_rope, (past, past))
        for found, full in ((y, wanted[0]), (k, wanted[1][0]), (v, wanted[1][1])):
            torch.testing.assert_close(found[:2], full[:2])
            assert torch.equal(found[2:], found[:2])
    assert batches == [2, 2], "what deceives is left whole"
    assert running.reasons == []


def test_two_arguments_that_deceive_are_found_out() -> None:
    block, running, x = _Adding(), _Running(rows=4, per_sample=2), torch.rand(4, 4, 3)
    call = ConditionalRows([block], running).halved(block, block)
    table = torch.rand(4, 3)
    torch.testing.assert_close(call(x, table, other=table), x + 2 * table)
    (reason,) = running.reasons
    assert "on the conditional rows alone a block" in reason
    assert "as many rows as the scale has tokens" in reason


class _Adding(nn.Module):
    """Adds tables of all tokens."""

    def forward(self, x: Tensor, table: Tensor, other: Tensor) -> Tensor:
        return x + table + other


class _Packed(nn.Module):
    """Adds to each row the sum of its packed words."""

    def forward(self, x: Tensor, words: tuple[Tensor, Tensor]) -> Tensor:
        packed, begins = words
        assert len(begins) == len(x) + 1
        sums = [packed[begins[row] : begins[row + 1]].sum(0) for row in range(len(x))]
        return x + torch.stack(sums)[:, None]


def test_packed_rows_keep_their_offsets() -> None:
    block, running, x = _Packed(), _Running(rows=4, per_sample=2), torch.rand(4, 4, 3)
    call = ConditionalRows([block], running).halved(block, block)
    words = torch.rand(9, 3), torch.tensor([0, 2, 3, 7, 9], dtype=torch.int32)
    found = call(x, words)
    assert running.reasons == []
    torch.testing.assert_close(found[:2], block(x, words)[:2])
    assert torch.equal(found[2:], found[:2])


def test_guidance_of_three_rows_is_a_counted_reason() -> None:
    block = nn.Linear(3, 3)
    running = _Running(rows=3, per_sample=3)
    call = ConditionalRows([block], running).halved(block, block)
    assert call(torch.zeros(3, 4, 3)).shape == (3, 4, 3)
    assert running.reasons == [
        "the unconditional branch was not replaced: that requires guidance with two rows a sample, "
        "and codes that are seen"
    ]


class _Caching(nn.Module):
    """Adds what it holds under a name that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "first"
        self.first = torch.arange(4.0)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x + getattr(self, self.name)


def test_a_cache_under_another_name_is_halved_too() -> None:
    block, running, x = _Caching(), _Running(rows=4, per_sample=2), torch.rand(4, 4, 3)
    call = ConditionalRows([block], running).halved(block, block)
    torch.testing.assert_close(call(x)[:2], x[:2] + block.first)
    assert block.first.shape == (2, 1, 1)
    # As many attributes as before.
    block.name, block.second = "second", torch.ones(4, 1, 1)
    del block.first
    torch.testing.assert_close(call(x)[:2], x[:2] + 1)
    assert block.second.shape == (2, 1, 1)


class _Placed(nn.Module):
    """Adds to each token what its number says."""

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        return x + numbers[: x.shape[1], None]


def test_numbers_that_look_like_offsets_are_left_whole() -> None:
    block, running, x = _Placed(), _Running(rows=4, per_sample=2), torch.rand(4, 4, 3)
    call = ConditionalRows([block], running).halved(block, block)
    for length in (4, 5, 6):  # of five, as many as offsets of four rows
        numbers = torch.arange(length)
        torch.testing.assert_close(call(x, numbers)[:2], block(x, numbers)[:2])
    assert running.reasons == []
