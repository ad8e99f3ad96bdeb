"""Attention over the stream is found in the ways that it is written, and near misses are left alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tests.passes.graphs import capture_program, count, rewritten, run
from tests.passes.toy_block import (
    DYNAMIC,
    Attend,
    Block,
    D,
    H,
    Inputs,
    assert_equal,
    captured,
    make_inputs,
    sdpa,
    typed,
)
from toprovar_compiler.errors import NoAttentionError, UnsupportedGraphError
from toprovar_compiler.passes.attention import SDPA, Attention, find_attention
from toprovar_compiler.passes.graph_tools import clone
from toprovar_compiler.passes.match_attention import MARK, AttentionMark, MatchAttention

aten = torch.ops.aten
SCALE = 0.7


@dataclass(frozen=True)
class Spelling:
    """Hand-written attention, with the scale and the kind of mask that SDPA must be given."""

    attend: Attend
    scale: float = SCALE
    mask: torch.dtype | None = None


def _slope(q: Tensor, k: Tensor) -> Tensor:
    """A bias [Nq, Nk] that differs from key to key and from token to token."""
    return torch.arange(q.shape[2], dtype=q.dtype)[:, None] * 0.2 - torch.arange(k.shape[2], dtype=q.dtype)


def _hidden(k: Tensor) -> Tensor:
    return torch.arange(k.shape[2]) % 3 == 1


def _in_place(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    scores = q @ k.transpose(-2, -1)
    scores *= SCALE
    scores += _slope(q, k)
    return scores.softmax(-1) @ v


SPELLINGS = {
    "operators": Spelling(lambda q, k, v, g: (q @ k.transpose(-2, -1) * SCALE).softmax(-1) @ v),
    "matmul": Spelling(
        lambda q, k, v, g: torch.matmul(
            torch.softmax(torch.matmul(q, k.transpose(2, 3)).mul(SCALE), dim=3), v
        )
    ),
    "permuted keys": Spelling(
        lambda q, k, v, g: F.softmax(q @ k.permute(0, 1, 3, 2), dim=-1).matmul(v), scale=1.0
    ),
    "scale on the query": Spelling(lambda q, k, v, g: ((q * SCALE) @ k.mT).softmax(-1) @ v, scale=1.0),
    "scale on the left": Spelling(lambda q, k, v, g: (SCALE * (q @ k.mT)).softmax(-1) @ v),
    "divided": Spelling(
        lambda q, k, v, g: ((q @ k.mT) / math.sqrt(D)).softmax(-1) @ v, scale=1 / math.sqrt(D)
    ),
    "scaled twice": Spelling(lambda q, k, v, g: (3 * (q @ k.mT) / 2 * 0.5).softmax(-1) @ v, scale=0.75),
    "bias behind": Spelling(
        lambda q, k, v, g: (q @ k.mT * SCALE + _slope(q, k)).softmax(-1) @ v, mask=torch.float64
    ),
    "bias ahead": Spelling(
        lambda q, k, v, g: (_slope(q, k) + q @ k.mT * SCALE).softmax(-1) @ v, mask=torch.float64
    ),
    "in place": Spelling(_in_place, mask=torch.float64),
    "number added": Spelling(lambda q, k, v, g: (q @ k.mT * SCALE + 2.0).softmax(-1) @ v),
    "filled": Spelling(
        lambda q, k, v, g: (q @ k.mT * SCALE).masked_fill(_hidden(k), -math.inf).softmax(-1) @ v,
        mask=torch.bool,
    ),
    "dropout switched off": Spelling(
        lambda q, k, v, g: F.dropout((q @ k.mT * SCALE).softmax(-1), 0.5, training=False) @ v
    ),
}


def _only(gm: fx.GraphModule) -> Attention:
    (attention,) = find_attention(gm.graph)
    return attention


def _marks(gm: fx.GraphModule) -> list[object]:
    return [attention.node.meta.get(MARK) for attention in find_attention(gm.graph)]


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_hand_written_attention_becomes_sdpa(spelling: Spelling) -> None:
    inputs, block = make_inputs(), Block(spelling.attend)
    before = captured(block, inputs)
    after = rewritten(before, MatchAttention())
    assert (count(before, aten.matmul), count(before, aten.softmax), count(before, SDPA)) == (2, 1, 0)
    assert (count(after, aten.matmul), count(after, aten.softmax), count(after, SDPA)) == (0, 0, 1)
    assert count(after, aten.dropout) == 0
    attention = _only(after)
    assert attention.scale == pytest.approx(spelling.scale, rel=1e-15)
    mask = attention.mask.meta["val"].dtype if attention.mask is not None else None
    assert mask == spelling.mask
    assert _marks(after) == [AttentionMark(torch.float64)]
    assert_equal(run(after, *inputs.values()), block(inputs))


def test_sdpa_is_marked_and_otherwise_left_as_it_is() -> None:
    inputs = make_inputs()
    before = captured(Block(), inputs)
    after = clone(before)
    assert MatchAttention()(after) == 1
    after.recompile()
    assert after.code == before.code
    assert _marks(after) == [AttentionMark(torch.float64)]
    assert _marks(before) == [None], "the copy's marks are its own"


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_softmax_in_float_with_a_cast_back_needs_no_casts(low: torch.dtype) -> None:
    """Run in float64, the matched graph is exact: the casts of the scores are gone."""

    def attend(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
        return F.softmax((q @ k.mT * SCALE).float(), dim=-1).to(q.dtype) @ v

    exact = Block(SPELLINGS["operators"].attend)
    before = captured(Block(attend), make_inputs(dtype=low))
    after = rewritten(before, MatchAttention())
    assert count(before, aten._to_copy) + count(before, aten.to) == 2
    assert count(after, aten._to_copy) + count(after, aten.to) == 0
    assert _marks(after) == [AttentionMark(low)]
    wide = make_inputs()
    assert_equal(run(after, *wide.values()), exact(wide))


def test_a_bias_of_another_dtype_is_cast_for_sdpa() -> None:
    """Float scores and a float bias on low-precision queries: SDPA wants one dtype."""

    def attend(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
        return ((q @ k.mT).float() + _slope(q, k).float()).softmax(-1).to(v.dtype) @ v

    after = typed(Block(attend), make_inputs(dtype=torch.bfloat16))
    attention = _only(after)
    assert attention.mask is not None
    assert attention.mask.meta["val"].dtype == torch.bfloat16


def test_the_dtype_of_autocast_is_recorded() -> None:
    inputs = make_inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        gm = typed(Block(), inputs)
    assert _marks(gm) == [AttentionMark(torch.bfloat16)]
    assert _marks(typed(Block(), inputs)) == [AttentionMark(torch.float32)]


def test_cross_attention_beside_is_not_marked() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
        return sdpa(q, k, v, given) + sdpa(q, given["text"], given["text"], given)

    assert _marks(typed(Block(attend), make_inputs())) == [AttentionMark(torch.float64), None]


def test_every_attention_over_the_stream_is_marked() -> None:
    def twice(given: Inputs) -> object:
        x, *_ = Block()(given)
        return Block(SPELLINGS["operators"].attend)({**given, "x": x})[0]

    gm = captured(twice, make_inputs())
    assert MatchAttention()(gm) == 2
    assert len(_marks(gm)) == 2


def _two_readers(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    scores = q @ k.mT
    return scores.softmax(-1) @ v + scores.mean(-1, keepdim=True)


def _two_readers_of_weights(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    return weights @ v + weights.amax(-1, keepdim=True)


def _merged_heads(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    q3, k3, v3 = (t.flatten(0, 1) for t in (q, k, v))
    return torch.bmm(torch.bmm(q3, k3.transpose(1, 2)).softmax(-1), v3).unflatten(0, (-1, H))


NEAR_MISSES: dict[str, Attend] = {
    "softmax over the queries": lambda q, k, v, g: (q @ k.mT).softmax(-2) @ v,
    "scores read twice": _two_readers,
    "weights read twice": _two_readers_of_weights,
    "dropout in training": lambda q, k, v, g: F.dropout((q @ k.mT).softmax(-1), 0.5, training=True) @ v,
    "filled with a finite number": lambda q, k, v, g: (
        (q @ k.mT).masked_fill(_hidden(k), -5.0).softmax(-1) @ v
    ),
    "scaled behind the bias": lambda q, k, v, g: ((q @ k.mT + _slope(q, k)) * SCALE).softmax(-1) @ v,
    "bias times a number": lambda q, k, v, g: torch.add(q @ k.mT, _slope(q, k), alpha=2).softmax(-1) @ v,
    "bias taken away": lambda q, k, v, g: (q @ k.mT - _slope(q, k)).softmax(-1) @ v,
    "scale in a tensor": lambda q, k, v, g: (q @ k.mT * g["b"][0]).softmax(-1) @ v,
    "soft cap": lambda q, k, v, g: ((q @ k.mT).tanh() * 3.0).softmax(-1) @ v,
    "keys changed behind the transpose": lambda q, k, v, g: (q @ (k.mT * 0.5)).softmax(-1) @ v,
    "heads in the batch": _merged_heads,
}


@pytest.mark.parametrize("attend", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_are_left_alone(attend: Attend) -> None:
    gm = captured(Block(attend), make_inputs())
    before = gm.code
    with pytest.raises(UnsupportedGraphError, match="form that is not recognised|no attention"):
        MatchAttention()(gm)
    gm.recompile()
    assert gm.code == before


def test_attention_that_is_causal_is_refused() -> None:
    block = Block(lambda q, k, v, g: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    with pytest.raises(UnsupportedGraphError, match="causal or drops at random"):
        typed(block, make_inputs())


def test_attention_that_drops_at_random_is_refused() -> None:
    block = Block(lambda q, k, v, g: F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
    with pytest.raises(UnsupportedGraphError, match="causal or drops at random"):
        typed(block, make_inputs())


def test_dropout_in_training_stays_where_dropout_in_evaluation_goes() -> None:
    block = Block(after=lambda x, g: F.dropout(F.dropout(x, 0.5, training=True), 0.5, training=False))
    inputs = make_inputs()
    assert count(captured(block, inputs), aten.dropout) == 2
    assert count(typed(block, inputs), aten.dropout) == 1


def test_cross_attention_alone_has_no_stream() -> None:
    block = Block(lambda q, k, v, g: sdpa(q, g["text"], g["text"], g), cache=lambda k, v, g: (k, v))
    with pytest.raises(UnsupportedGraphError, match="no residual stream"):
        typed(block, make_inputs())


def test_a_graph_without_attention_says_so() -> None:
    inputs = {"x": make_inputs()["x"]}
    gm = capture_program(lambda given: given["x"] * 2, inputs, DYNAMIC)
    with pytest.raises(NoAttentionError, match="no attention in this graph"):
        MatchAttention()(gm)


def test_two_streams_are_refused() -> None:
    def two(given: Inputs) -> object:
        return Block()(given)[0], Block()({**given, "x": given["y"]})[0]

    inputs = make_inputs()
    inputs = {**inputs, "y": inputs["x"].flip(1)}
    gm = capture_program(two, inputs, {**DYNAMIC, "y": (1,)}, duck=True)
    with pytest.raises(UnsupportedGraphError, match="more than one token stream"):
        MatchAttention()(gm)


def test_a_condition_of_the_streams_shape_is_no_second_stream() -> None:
    """It reaches the result as well, but not along the residual path."""
    block = Block(before=lambda x, given: x * given["y"].sigmoid())
    inputs = make_inputs()
    inputs = {**inputs, "y": inputs["x"].flip(1)}
    gm = capture_program(block, inputs, {**DYNAMIC, "y": (1,)}, duck=True)
    assert MatchAttention()(gm) == 1
