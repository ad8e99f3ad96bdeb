"""Token typing: which values carry tokens and where, and why a graph is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tests.passes.graphs import capture_program, rewritten
from tests.passes.toy_block import (
    CACHED,
    DYNAMIC,
    B,
    Block,
    C,
    D,
    H,
    Inputs,
    N,
    captured,
    make_inputs,
    sdpa,
    typed,
)
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.attention import SDPA
from toprovar_compiler.passes.axes import Axes
from toprovar_compiler.passes.graph_tools import calls, expr_of, value_of
from toprovar_compiler.passes.match_attention import MARK, MatchAttention
from toprovar_compiler.passes.token_axis import TokenStream, find_token_stream

aten = torch.ops.aten


def _stream(gm: fx.GraphModule) -> TokenStream:
    return find_token_stream(gm.graph)


def _axes(gm: fx.GraphModule, stream: TokenStream, target: object) -> list[Axes | None]:
    return [stream.axes.get(node) for node in calls(gm.graph, target)]


def test_the_stream_is_the_residual_input_and_its_output() -> None:
    gm = typed(Block(extra=lambda h, g: [g["cond"] * 2]), make_inputs())
    stream = _stream(gm)
    assert stream.source.target == next(iter(gm.graph.nodes)).target
    assert stream.symbol == expr_of(value_of(stream.source).shape[1])
    assert stream.result == 0
    assert [a.node.target for a in stream.attention] == [SDPA]


def test_the_output_may_stand_anywhere() -> None:
    gm = typed(lambda given: Block()(given)[::-1], make_inputs())
    assert _stream(gm).result == 2


def test_axes_follow_the_tokens_through_projection_cache_and_attention() -> None:
    gm = typed(Block(), make_inputs())
    stream = _stream(gm)
    assert _axes(gm, stream, aten.permute.default) == [Axes(1, 3, "token")]
    assert _axes(gm, stream, aten.unbind.int) == [Axes(0, 2, "token")]
    assert _axes(gm, stream, aten.cat.default) == [Axes(0, 2, "context")] * 2
    assert _axes(gm, stream, SDPA) == [Axes(0, 2, "token")]
    assert _axes(gm, stream, aten.linear.default) == [Axes(0, 1, "token")] * 2


def test_a_cache_may_stand_behind_the_tokens() -> None:
    def cache(k: Tensor, v: Tensor, given: Inputs) -> tuple[Tensor, Tensor]:
        return torch.cat([k, given["past_k"]], 2), torch.cat([v, given["past_v"]], 2)

    gm = typed(Block(cache=cache), make_inputs())
    assert _axes(gm, _stream(gm), aten.cat.default) == [Axes(0, 2, "context", last=False)] * 2


def test_a_rotary_table_that_is_given_back_is_no_stream() -> None:
    """Official Infinity fetches its table to the GPU in its first block, and keeps it."""
    inputs = {**make_inputs(), "table": torch.rand(B, N, D, dtype=torch.float32)}

    def turned(x: Tensor, given: Inputs) -> Tensor:
        return x * given["table"].double()[:, None]

    block = Block(heads=turned, extra=lambda h, given: [given["table"].double()])
    gm = rewritten(capture_program(block, inputs, {**DYNAMIC, "table": (1,)}, duck=True), MatchAttention())
    assert _stream(gm).source is next(iter(gm.graph.nodes))


def test_values_of_the_token_count_that_are_not_the_streams_are_shared() -> None:
    block = Block(tables=lambda g: {"t": g["buffer"][: g["x"].shape[1]]}, heads=lambda t, g: t * g["t"])
    gm = typed(block, make_inputs())
    stream = _stream(gm)
    (table,) = calls(gm.graph, aten.slice.Tensor)
    assert stream.is_shared(table)
    assert table not in stream.axes
    assert not any(stream.is_shared(node) for node in stream.axes)
    weight = next(node for node in gm.graph.nodes if value_of(node).shape == (3 * C, C))
    assert not stream.is_shared(weight)


def test_weights_and_conditions_are_no_tokens() -> None:
    gm = typed(Block(before=lambda x, g: x * g["cond"][:, None]), make_inputs())
    stream = _stream(gm)
    assert not [n for n in stream.axes if n.op == "placeholder" and n is not stream.source]


def _convolution(x: Tensor, given: Inputs) -> Tensor:
    return F.conv1d(x.transpose(1, 2), given["w"][:, :, None].expand(-1, -1, 3), padding=1).transpose(1, 2)


def _triangle(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    """Causal, by hand: each token sees the cache and the tokens before it."""
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1 + k.shape[2] - q.shape[2])
    return (q @ k.mT).masked_fill(later, -math.inf).softmax(-1) @ v


def _bias_over_keys(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    bias = torch.arange(k.shape[2], dtype=q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])


def _mask_of_positions(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    """Keys that are N positions, not the tokens, under a mask that has N numbers where keys stand."""
    keys = given["buffer"][: q.shape[2]].expand(B, H, -1, -1)
    mask = given["buffer"][: q.shape[2], 0][None]
    return sdpa(q, k, v, given) + F.scaled_dot_product_attention(q, keys, keys, attn_mask=mask)


def _head_by_head(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    return torch.stack([sdpa(q[:, head], k[:, head], v[:, head], given) for head in range(H)], 1)


def _read_twice(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    """Beside an attention that is recognised, one that is not."""
    scores = q @ k.mT
    return sdpa(q, k, v, given) + scores.softmax(-1) @ v + scores.amax(-1, keepdim=True)


def _between(k: Tensor, v: Tensor, given: Inputs) -> tuple[Tensor, Tensor]:
    past = given["past_k"]
    return torch.cat([past, k, past], 2), torch.cat([past, v, past], 2)


def _out_of_step(k: Tensor, v: Tensor, given: Inputs) -> tuple[Tensor, Tensor]:
    return torch.cat([given["past_k"], k], 2), torch.cat([v, given["past_v"]], 2)


REFUSED: dict[str, tuple[Block, str]] = {
    "convolution over tokens": (Block(before=_convolution), "conv1d.* is not known to act on each token"),
    "cumsum over tokens": (Block(before=lambda x, g: x.cumsum(1)), "cumsum.* works along this dimension"),
    "softmax over tokens": (Block(after=lambda x, g: x.softmax(1)), "softmax.* works along this dimension"),
    "mean over tokens": (Block(after=lambda x, g: x - x.mean(1, True)), "mean.* reduces over this dimension"),
    "mean over samples": (
        Block(after=lambda x, g: x - x.mean(0, True)),
        "mean.* reduces over this dimension",
    ),
    "norm over tokens": (
        Block(after=lambda x, g: F.layer_norm(x.mT, x.mT.shape[-1:]).mT),
        "layer_norm.* normalises over this dimension",
    ),
    "first token": (Block(after=lambda x, g: x + x[:, :1]), "slice.* takes a part of this dimension"),
    "random": (Block(after=lambda x, g: F.dropout(x, 0.5, True)), "dropout.* draws random numbers"),
    "tokens in the channels": (
        Block(before=lambda x, g: x.mT.flatten(1).relu().view(x.mT.shape).mT),
        "(view|reshape|clone).* merges or splits this dimension",
    ),
    "tokens against tokens": (
        Block(before=lambda x, g: (x @ x.mT).tanh() @ x),
        "matmul.* contracts this dimension|brings different dimensions",
    ),
    "mask over the keys": (Block(_bias_over_keys), "mask over the keys of the stream"),
    "causal by hand": (Block(_triangle), "mask over the keys of the stream"),
    "unrecognised beside": (Block(_read_twice), "brings different dimensions|contracts this dimension"),
    "mask in another dimension": (Block(_mask_of_positions), "mask whose tokens stand in another dimension"),
    "head by head": (Block(_head_by_head), r"requires queries of shape \[B, H, N, D\]"),
    "a part of the keys": (
        Block(lambda q, k, v, g: sdpa(q, k[:, :, -2:], v[:, :, -2:], g)),
        "slice.* takes a part of this dimension",
    ),
    "keys and values out of step": (Block(cache=_out_of_step), "keys and values in different orders"),
    "tokens between keys": (Block(cache=_between), "puts the tokens between other keys"),
    "values from elsewhere": (
        Block(lambda q, k, v, g: sdpa(q, k, g["past_v"].mean(2, True).expand(k.shape), g)),
        "keys and values from different places",
    ),
    "tokens joined to themselves": (
        Block(cache=lambda k, v, g: (torch.cat([k, k], 2), torch.cat([v, v], 2))),
        "joins tokens with other tokens",
    ),
    "a second value": (Block(extra=lambda h, g: [h * 2]), "returns a second value of the tokens|shape, got"),
    "two results": (
        Block(extra=lambda h, g: [h + g["x"]]),
        "residual stream's shape, got 2",
    ),
}


@pytest.mark.parametrize(("block", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals_have_reasons(block: Block, reason: str) -> None:
    gm = typed(block, make_inputs())
    with pytest.raises(UnsupportedGraphError, match=reason):
        find_token_stream(gm.graph)


def test_a_mask_over_the_keys_stops_pruning_only() -> None:
    """The attention itself is matched; with fewer keys the mask would not fit."""
    gm = typed(Block(_bias_over_keys), make_inputs())
    assert [MARK in node.meta for node in calls(gm.graph, SDPA)] == [True]
    with pytest.raises(UnsupportedGraphError, match="would no longer fit"):
        find_token_stream(gm.graph)


def test_a_graph_for_one_number_of_tokens_is_refused() -> None:
    gm = rewritten(
        capture_program(Block(), make_inputs(), {"past_k": (2,), "past_v": (2,)}), MatchAttention()
    )
    with pytest.raises(UnsupportedGraphError, match=rf"token count is constant in this graph \({N}\)"):
        find_token_stream(gm.graph)


def test_tokens_in_another_place_are_refused() -> None:
    """[N, B, C], as sequence-first models have it."""

    def sequence_first(given: Inputs) -> Tensor:
        x, *_ = Block()({**given, "x": given["x"].transpose(0, 1)})
        assert isinstance(x, Tensor)
        return x.transpose(0, 1)

    inputs = make_inputs(0)
    inputs["x"] = inputs["x"].transpose(0, 1).contiguous()
    gm = capture_program(sequence_first, inputs, {"x": (0,)})
    with pytest.raises(UnsupportedGraphError, match="no residual stream|tokens stand elsewhere"):
        find_token_stream(rewritten(gm, MatchAttention()).graph)


def test_a_table_that_fits_one_number_of_tokens_is_refused() -> None:
    """Of N rows today: on K tokens it would be added to the wrong ones, or not at all."""
    inputs = {**make_inputs(), "fixed": torch.ones(N, C, dtype=torch.float64)}
    gm = capture_program(Block(after=lambda x, g: x + g["fixed"]), inputs, DYNAMIC)
    with pytest.raises(UnsupportedGraphError, match="constant in this graph|fixed number of tokens"):
        find_token_stream(rewritten(gm, MatchAttention()).graph)


def test_typing_reads_only() -> None:
    gm = captured(Block(), make_inputs())
    before = (gm.code, [dict(node.meta) for node in gm.graph.nodes])
    find_token_stream(gm.graph)
    gm.recompile()
    assert (gm.code, [dict(node.meta) for node in gm.graph.nodes]) == before


def test_the_captured_sizes_are_symbols() -> None:
    """Two of them, for tokens and for cached keys; all other sizes are numbers."""
    gm = captured(Block(), make_inputs())
    stream = _stream(gm)
    assert value_of(stream.attention[0].query).shape[:2] == (B, H)
    assert value_of(stream.attention[0].query).shape[3] == D
    length = expr_of(value_of(stream.attention[0].key).shape[2])
    assert stream.symbol in length.free_symbols
    (cached,) = length.free_symbols - {stream.symbol}
    assert length == stream.symbol + cached
    assert length.subs({stream.symbol: N, cached: CACHED}) == CACHED + N
