"""The summary: its keys, its arithmetic, and that it says what ran."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import toprovar_compiler
from tests.toy_generators import ClassVAR, make
from toprovar_compiler.counters import Counters, Work
from toprovar_compiler.summary import Summary

KEYS = {
    "generations", "tokens_total", "tokens_computed", "per_scale", "per_layer", "flops_total",
    "flops_computed", "graphs", "recompiles", "fallbacks",
    "error_bound",
}  # fmt: skip
SUMMED = ("tokens_total", "tokens_computed", "flops_total", "flops_computed")
SCALES, LAYERS, ROWS = (1, 4, 9, 16, 36), 3, 4
WIDTH, HEADS = 32, 4


@pytest.fixture
def after_one(class_var: Any, labels: Tensor) -> Any:
    """The summary of one generation that keeps 30 % of the last three scales."""
    model = class_var(keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    return toprovar_compiler.summary(model)


def _kept(tokens: int, scale: int) -> int:
    return tokens if scale < 2 else round(0.3 * tokens)


def test_the_keys_that_scripts_rely_on_are_there(after_one: Summary) -> None:
    assert set(after_one.to_dict()) >= KEYS


def test_to_dict_is_json(after_one: Summary) -> None:
    assert json.loads(json.dumps(after_one.to_dict())) == after_one.to_dict()


@pytest.mark.parametrize("part", ["per_scale", "per_layer"])
@pytest.mark.parametrize("key", SUMMED)
def test_parts_add_up_to_the_whole(after_one: Summary, part: str, key: str) -> None:
    data = after_one.to_dict()
    assert sum(row[key] for row in data[part]) == data[key]


def test_tokens_are_counted_once_per_row_block_and_scale(after_one: Summary) -> None:
    data = after_one.to_dict()
    kept = [_kept(tokens, scale) for scale, tokens in enumerate(SCALES)]
    assert data["tokens_total"] == ROWS * LAYERS * sum(SCALES)
    assert data["tokens_computed"] == ROWS * LAYERS * sum(kept)
    assert [row["tokens_computed"] for row in data["per_scale"]] == [ROWS * LAYERS * k for k in kept]


def test_every_scale_and_layer_has_a_row(after_one: Summary) -> None:
    data = after_one.to_dict()
    rows = [(row["scale"], row["tokens"], row["layers"]) for row in data["per_scale"]]
    assert rows == [(scale, tokens, LAYERS) for scale, tokens in enumerate(SCALES)]
    assert [row["layer"] for row in data["per_layer"]] == [0, 1, 2]


def _block_flops(queries: int, keys: int) -> int:
    """By hand: qkv, proj and feed-forward on each token, modulation once a row, and the attention."""
    linears = queries * (3 + 1 + 2 + 2) * WIDTH * WIDTH + 6 * WIDTH * WIDTH
    return 2 * ROWS * (linears + 2 * queries * keys * WIDTH)


def test_flops_are_those_of_the_blocks_by_hand(after_one: Summary) -> None:
    due = done = prefix = cache = 0
    for scale, tokens in enumerate(SCALES):
        kept = _kept(tokens, scale)
        due += LAYERS * _block_flops(tokens, prefix + tokens)
        done += LAYERS * _block_flops(kept, cache + kept)
        prefix, cache = prefix + tokens, cache + kept
    data = after_one.to_dict()
    assert (data["flops_total"], data["flops_computed"]) == (due, done)


def test_computed_keys_of_pruned_tokens_are_counted(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3, pruned_keys="computed")
    model.autoregressive_infer_cfg(labels)
    done = prefix = 0
    for scale, tokens in enumerate(SCALES):
        kept = _kept(tokens, scale)
        # q, k and v are one linear layer here: it runs for all tokens, and for the kept ones' queries again
        extra = 2 * ROWS * tokens * 3 * WIDTH * WIDTH if kept < tokens else 0
        done += LAYERS * (_block_flops(kept, prefix + tokens) + extra)
        prefix += tokens
    assert toprovar_compiler.summary(model).to_dict()["flops_computed"] == done


def test_flops_of_an_option_do_not_stick_to_the_model(class_var: Any, labels: Tensor) -> None:
    computed = []
    for keys in ("absent", "computed", "absent"):
        model = class_var(keep_ratio=0.3, pruned_keys=keys)
        model.autoregressive_infer_cfg(labels)
        computed.append(toprovar_compiler.summary(model).to_dict()["flops_computed"])
    assert computed[0] == computed[2] < computed[1]


def test_dense_computes_what_is_due(class_var: Any, labels: Tensor) -> None:
    model = class_var(policy="dense")
    model.autoregressive_infer_cfg(labels)
    data = toprovar_compiler.summary(model).to_dict()
    assert data["tokens_computed"] == data["tokens_total"] == ROWS * LAYERS * sum(SCALES)
    assert data["flops_computed"] == data["flops_total"]


def test_counts_add_up_over_generations(after_one: Summary, class_var: Any, labels: Tensor) -> None:
    once = after_one.to_dict()
    model = class_var(keep_ratio=0.3)
    for _ in range(2):
        model.autoregressive_infer_cfg(labels)
    twice = toprovar_compiler.summary(model).to_dict()
    assert twice["generations"] == 2
    assert [twice[key] for key in SUMMED] == [2 * once[key] for key in SUMMED]


def test_all_counts_since_the_last_reset_are_added_up(class_var: Any, labels: Tensor) -> None:
    for ratio in (0.3, 0.6):
        class_var(keep_ratio=ratio).autoregressive_infer_cfg(labels)
    assert toprovar_compiler.summary().to_dict()["generations"] == 2


def test_reset_sets_every_count_to_zero(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    toprovar_compiler.reset()
    for summary in (toprovar_compiler.summary(), toprovar_compiler.summary(model)):
        assert all(not value for value in summary.to_dict().values())


def test_counting_goes_on_after_a_reset(class_var: Any, labels: Tensor) -> None:
    model = class_var(keep_ratio=0.3)
    model.autoregressive_infer_cfg(labels)
    toprovar_compiler.reset()
    model.autoregressive_infer_cfg(labels)
    assert toprovar_compiler.summary(model).to_dict()["generations"] == 1
    assert toprovar_compiler.summary().to_dict()["tokens_total"] == ROWS * LAYERS * sum(SCALES)


def test_counts_of_a_forgotten_model_are_not_lost(labels: Tensor) -> None:
    toprovar_compiler.compile(make(ClassVAR), policy="dense").autoregressive_infer_cfg(labels)
    assert toprovar_compiler.summary().to_dict()["generations"] == 1


def test_asking_in_the_middle_changes_no_picture(
    class_var: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = class_var(keep_ratio=0.3)
    picture = model.autoregressive_infer_cfg(labels)
    book = model.vae_proxy[0]
    add = book.add

    def add_and_ask(f_hat: Tensor, idx: Tensor, side: int) -> Tensor:
        toprovar_compiler.summary(model), toprovar_compiler.summary(), toprovar_compiler.kept_tokens(model)
        return add(f_hat, idx, side)

    monkeypatch.setattr(book, "add", add_and_ask)
    assert torch.equal(model.autoregressive_infer_cfg(labels), picture)


def test_the_text_shows_the_numbers(after_one: Summary) -> None:
    text, data = str(after_one), after_one.to_dict()
    assert f"{data['tokens_total']:,} due, {data['tokens_computed']:,} computed" in text
    assert re.search(r"4 +36 +3 +30\.6 %", text)
    assert "fallbacks: none" in text


def test_the_text_says_that_nothing_ran() -> None:
    assert "no compiled block has run" in str(Summary(()))


def test_the_text_says_that_nothing_was_skipped_and_why() -> None:
    counters = Counters("toy", generations=1, fallbacks=Counter({"too odd": 3}))
    counters.record(0, 0, 4, Work(8, 8, 16, 16))
    text = str(Summary((counters,)))
    assert "nothing was skipped" in text
    assert "3 x too odd" in text
