"""Pruned graphs: what is gathered, what is computed, and the eager block's numbers on gathered tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tests.passes.graphs import capture_calls, count, rewritten, run
from tests.passes.toy_block import (
    CACHED,
    B,
    Block,
    C,
    D,
    H,
    Inputs,
    N,
    assert_equal,
    captured,
    make_inputs,
    on_kept,
    scattered,
    sdpa,
    typed,
)
from toprovar_compiler.passes.attention import SDPA
from toprovar_compiler.passes.fuse_entropy import FuseEntropy
from toprovar_compiler.passes.graph_tools import placeholders
from toprovar_compiler.passes.match_attention import MatchAttention
from toprovar_compiler.passes.prune_tokens import BASE, INDEX, PrunedKeys, PruneTokens

aten = torch.ops.aten
BOTH: tuple[PrunedKeys, ...] = ("absent", "computed")

# Other tokens for each sample, in no order.
INDEX_OF: dict[int, Tensor] = {
    0: torch.empty(B, 0, dtype=torch.int64),
    1: torch.tensor([[4], [1]]),
    3: torch.tensor([[5, 0, 3], [2, 4, 1]]),
    N: torch.tensor([[3, 1, 5, 0, 2, 4], [0, 1, 2, 3, 4, 5]]),
}


def _base(inputs: Inputs) -> Tensor:
    return torch.full_like(inputs["x"], 7.0) + torch.arange(N, dtype=inputs["x"].dtype)[:, None]


def _pruned(block: Block, inputs: Inputs, keys: PrunedKeys = "absent") -> fx.GraphModule:
    return rewritten(typed(block, inputs), PruneTokens(keys))


def _check(gm: fx.GraphModule, block: Block, inputs: Inputs, kept: Sequence[int] = (1, 3, N)) -> None:
    """``gm``, pruned with keys absent, against the eager block on gathered tokens."""
    base = _base(inputs)
    for number in kept:
        index = INDEX_OF[number]
        assert_equal(run(gm, *inputs.values(), index, base), on_kept(block, inputs, index, base))


def _heads_moved(t: Tensor, given: Inputs) -> Tensor:
    """A rotary embedding of [B, H, N, D] by the table [N, D]."""
    one, two = t.chunk(2, -1)
    angle = given["table"][..., : D // 2]
    return torch.cat([one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos()], -1)


def _angles(given: Inputs) -> Tensor:
    """[N, D], made of an arange."""
    return torch.arange(given["x"].shape[1], dtype=torch.float64)[:, None] * 0.3 + given["buffer"][0]


def test_one_gather_one_scatter_and_the_same_ops_between() -> None:
    inputs = make_inputs()
    before = typed(Block(), inputs)
    after = rewritten(before, PruneTokens())
    assert (count(before, aten.gather), count(before, aten.scatter)) == (0, 0)
    assert (count(after, aten.gather), count(after, aten.scatter)) == (1, 1)
    for op in (aten.linear, aten.layer_norm, aten.cat, aten.unbind, SDPA):
        assert count(after, op) == count(before, op), op
    assert PruneTokens()(typed(Block(), inputs)) == 2


def test_two_inputs_are_added_behind_the_others() -> None:
    inputs = make_inputs()
    before, after = typed(Block(), inputs), _pruned(Block(), inputs)
    own = [n.target for n in placeholders(before.graph)]
    assert [n.target for n in placeholders(after.graph)] == [*own, INDEX, BASE]


@pytest.mark.parametrize("cached", [0, CACHED])
def test_kept_tokens_are_those_of_the_eager_block(cached: int) -> None:
    inputs = make_inputs(cached)
    _check(_pruned(Block(), inputs), Block(), inputs)


def test_a_stream_that_leaves_in_a_wider_dtype_is_scattered_in_it() -> None:
    """As under autocast: what a first block gets is narrow, and what it adds is not."""
    block, inputs = Block(before=lambda x, given: x.double()), make_inputs()
    narrow = {**inputs, "x": inputs["x"].half()}
    index, base = INDEX_OF[3], _base(narrow)
    found = run(_pruned(block, narrow), *narrow.values(), index, base)
    assert_equal(found, on_kept(block, narrow, index, base.double()))


def test_arguments_stay_as_they_are() -> None:
    inputs = make_inputs()
    base, index = _base(inputs), INDEX_OF[3]
    given = [*inputs.values(), index, base]
    copies = [value.clone() for value in given]
    run(_pruned(Block(), inputs), *given)
    assert all(torch.equal(one, two) for one, two in zip(given, copies, strict=True))


def test_with_computed_keys_the_queries_alone_are_fewer() -> None:
    """The packed projection runs for all tokens (keys, values) and for the kept ones (queries)."""
    inputs = make_inputs()
    before = typed(Block(), inputs)
    after = rewritten(before, PruneTokens("computed"))
    assert (count(after, aten.gather), count(after, aten.scatter)) == (1, 1)
    assert (count(before, aten.linear), count(after, aten.linear)) == (2, 3)
    assert (count(before, SDPA), count(after, SDPA)) == (1, 1)


@pytest.mark.parametrize("kept", [1, 3, N])
@pytest.mark.parametrize("cached", [0, CACHED])
def test_computed_keys_give_kept_tokens_what_the_dense_block_gives(cached: int, kept: int) -> None:
    inputs, index = make_inputs(cached), INDEX_OF[kept]
    stream, keys, values = Block()(inputs)
    assert isinstance(stream, Tensor)
    base = _base(inputs)
    expected = scattered(base, index, stream[torch.arange(B)[:, None], index])
    actual = run(_pruned(Block(), inputs, "computed"), *inputs.values(), index, base)
    assert_equal(actual, [expected, keys, values])


@pytest.mark.parametrize("keys", BOTH)
def test_no_token_kept_is_the_base_with_the_keys_that_are_due(keys: PrunedKeys) -> None:
    """The budget keeps two at least; a caller of the pass who keeps none gets what that means."""
    inputs, base = make_inputs(), _base(make_inputs())
    stream, k, v = run(_pruned(Block(), inputs, keys), *inputs.values(), INDEX_OF[0], base)
    assert torch.equal(stream, base)
    of_all = Block()(inputs)[1:]
    assert_equal([k, v], (inputs["past_k"], inputs["past_v"]) if keys == "absent" else of_all)


@pytest.mark.parametrize("keys", BOTH)
def test_one_kept_token_is_one_query(keys: PrunedKeys) -> None:
    inputs, index = make_inputs(), INDEX_OF[1]
    gm = rewritten(typed(Block(), inputs), PruneTokens(keys), FuseEntropy())
    stream, k, _, entropy = run(gm, *inputs.values(), index, _base(inputs))
    assert (stream.shape, entropy.shape) == ((B, N, C), (B, H, 1))
    assert k.shape == (B, H, CACHED + (1 if keys == "absent" else N), D)


TABLES = {
    "interior slice": lambda g: {"table": g["buffer"][4 : 4 + g["x"].shape[1]]},
    "slice behind the cache": lambda g: {
        "table": g["buffer"][g["past_k"].shape[2] : g["past_k"].shape[2] + g["x"].shape[1]]
    },
    "tail": lambda g: {"table": g["buffer"][: 4 + g["x"].shape[1]][4:]},
    "narrow": lambda g: {"table": g["buffer"].narrow(0, 4, g["x"].shape[1])},
    "arange": lambda g: {"table": _angles(g)},
    "chunk": lambda g: {"table": torch.cat([_angles(g).cos(), _angles(g)], -1).chunk(2, -1)[1]},
    "split": lambda g: {"table": torch.cat([_angles(g).cos(), _angles(g)], -1).split([D, D], -1)[1]},
    "unbind": lambda g: {"table": torch.stack([_angles(g).cos(), _angles(g)]).unbind(0)[1]},
    "chunk of [1, N, D]": lambda g: {"table": _angles(g)[None].repeat(1, 1, 2).chunk(2, -1)[1][0]},
}


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
def test_positions_made_inside_the_graph_are_gathered(tables: object) -> None:
    """Each sample has rows of its own: rows 0 to K of a slice, which have the right shape, are wrong."""
    block, inputs = Block(tables=tables, heads=_heads_moved), make_inputs()  # type: ignore[arg-type]
    gm = _pruned(block, inputs)
    assert count(gm, aten.gather) > 1
    _check(gm, block, inputs)


def test_positions_are_gathered_where_the_offset_is_a_python_number() -> None:
    """Through Dynamo, for which the offset is a size like any other as soon as it changes."""

    def block(x: Tensor, w: Tensor, buffer: Tensor, offset: int) -> Tensor:
        q, k, v = F.linear(x, w).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4).unbind(0)
        rows = buffer[offset : offset + x.shape[1]]
        return x + sdpa(q * rows, k * rows, v, {}).transpose(1, 2).flatten(2)

    inputs = make_inputs()
    shared = (inputs["wqkv"], inputs["buffer"])
    calls = [(inputs["x"][:, :4], *shared, 0), (inputs["x"][:, :5], *shared, 4), (inputs["x"], *shared, 9)]
    seen = capture_calls(block, *calls)
    gm = rewritten(seen.graphs[-1], MatchAttention(), PruneTokens())
    index, base = INDEX_OF[3], _base(inputs)
    rows = inputs["buffer"][9 : 9 + N]
    alone = [_rotated(inputs["x"][i : i + 1, index[i]], inputs["wqkv"], rows[index[i]]) for i in range(B)]
    expected = scattered(base, index, torch.cat(alone))
    assert_equal(run(gm, *seen.arguments[-1], index, base), [expected])


def _rotated(x: Tensor, w: Tensor, rows: Tensor) -> Tensor:
    q, k, v = F.linear(x, w).view(1, -1, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return x + sdpa(q * rows, k * rows, v, {}).transpose(1, 2).flatten(2)


def test_a_bias_added_in_place_is_there() -> None:
    def before(x: Tensor, given: Inputs) -> Tensor:
        y = F.linear(x, given["w"])
        y += given["b"]
        y.mul_(0.5)
        return y

    block, inputs = Block(before=before), make_inputs()
    _check(_pruned(block, inputs), block, inputs)
    base = _base(inputs)
    without = {**inputs, "b": torch.zeros_like(inputs["b"])}
    stream = on_kept(block, inputs, INDEX_OF[3], base)[0]
    assert not torch.allclose(stream, on_kept(block, without, INDEX_OF[3], base)[0]), "the bias counts"


def test_a_value_of_each_sample_is_not_gathered() -> None:
    block = Block(before=lambda x, g: x * (1 + g["cond"][:, None]))
    inputs = make_inputs()
    gm = _pruned(block, inputs)
    assert count(gm, aten.gather) == 1
    _check(gm, block, inputs)


def test_a_table_is_returned_whole() -> None:
    """It does not come from the tokens, so none of it is missing."""
    tables = TABLES["interior slice"]
    block = Block(tables=tables, heads=_heads_moved, extra=lambda h, g: [g["table"] * 2])
    inputs, base = make_inputs(), _base(make_inputs())
    *results, table = run(_pruned(block, inputs), *inputs.values(), INDEX_OF[3], base)
    assert torch.equal(table, inputs["buffer"][4 : 4 + N] * 2)
    assert_equal(results, on_kept(block, inputs, INDEX_OF[3], base)[:3])


def test_views_become_reshapes() -> None:
    """A gathered value may lie otherwise in memory than what the view was of."""

    def after(x: Tensor, given: Inputs) -> Tensor:
        return x.view(*x.shape[:2], 2, C // 2).view(x.shape) * 2

    block, inputs = Block(after=after), make_inputs()
    before, gm = typed(block, inputs), _pruned(block, inputs)
    assert count(before, aten.view) >= 2
    assert count(before, aten.view) + count(before, aten.reshape) <= count(gm, aten.reshape) + 1
    transposed = {**inputs, "x": inputs["x"].transpose(1, 2).contiguous().transpose(1, 2)}
    _check(gm, block, transposed)


def test_sizes_inside_the_graph_follow_the_kept_tokens() -> None:
    """Sums and products of sizes in view shapes, with K where they say N."""

    def attend(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
        rows, heads, tokens, width = q.shape
        keys = k.shape[2]
        q = q.reshape(rows, 1, heads, tokens, width).expand(rows, 1, heads, tokens, width)
        k = k.transpose(2, 3).reshape(rows, heads * width, (keys - tokens) + tokens)
        k = k.view(rows, heads, width, keys).transpose(2, 3)
        return sdpa(q.view(rows, heads, tokens, width), k, v, given)

    block, inputs = Block(attend), make_inputs()
    _check(_pruned(block, inputs), block, inputs)


def test_cross_attention_runs_on_the_kept_queries() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
        return sdpa(q, k, v, given) + sdpa(q, given["text"], given["text"], given)

    block, inputs = Block(attend), make_inputs()
    _check(_pruned(block, inputs), block, inputs)


def test_what_only_pruned_values_needed_is_gone() -> None:
    """With keys absent, nothing of the dense computation is left behind."""
    inputs = make_inputs()
    gm = _pruned(Block(), inputs)
    assert all(node.users or node.op in ("output", "placeholder") for node in gm.graph.nodes)


def test_the_captured_graph_is_never_changed() -> None:
    """With nothing to prune it is what runs: its code and its values are those that it was captured with."""
    inputs = make_inputs()
    gm = captured(Block(tables=TABLES["interior slice"], heads=_heads_moved), inputs)
    before = (gm.code, [dict(node.meta) for node in gm.graph.nodes])
    for keys in BOTH:
        rewritten(gm, MatchAttention(), PruneTokens(keys), FuseEntropy())
    gm.recompile()
    assert (gm.code, [dict(node.meta) for node in gm.graph.nodes]) == before
