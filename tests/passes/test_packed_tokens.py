"""Cross-attention over packed sequences: typed, pruned, counted, and refused where it would not hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.packed_attention import attend_packed
from tests.passes.graphs import rewritten, run
from tests.passes.toy_block import Block, C, D, H, Inputs, N, assert_equal, make_inputs, on_kept, typed
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.flops import node_flops
from toprovar_compiler.passes.packed_tokens import is_varlen
from toprovar_compiler.passes.prune_tokens import PrunedKeys, PruneTokens
from toprovar_compiler.passes.token_axis import find_token_stream

WORDS = (4, 3)
INDEX = torch.tensor([[5, 0, 3], [2, 4, 1]])


def _inputs() -> Inputs:
    """Prompts of 4 and 3 words. ``word_rows`` tells the eager reference, sample by sample, whose turn it is."""
    inputs = make_inputs()
    words = torch.randn(sum(WORDS), C, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    begins = torch.tensor([0, *WORDS]).cumsum(0).to(torch.int32)
    return inputs | {"words": words, "begins": begins}


def _across(**changed: object) -> Callable[[Tensor, Inputs], Tensor]:
    def after(x: Tensor, given: Inputs) -> Tensor:
        keys = F.linear(given["words"], given["w"]).unflatten(-1, (H, D))
        queries = F.linear(x, given["w"]).unflatten(-1, (H, D))
        return x + attend_packed(queries, keys, keys, given["begins"], max(WORDS), **changed)

    return after


def _of_one_sample(inputs: Inputs, sample: int) -> Inputs:
    first, last = sum(WORDS[:sample]), sum(WORDS[: sample + 1])
    begins = torch.tensor([0, last - first], dtype=torch.int32)
    per_sample = {n: inputs[n][sample : sample + 1] for n in ("x", "past_k", "past_v", "cond", "text")}
    return {**inputs, **per_sample, "words": inputs["words"][first:last], "begins": begins}


@pytest.mark.parametrize("keys", ["absent", "computed"])
def test_kept_tokens_attend_to_their_own_words(keys: PrunedKeys) -> None:
    inputs = _inputs()
    block = Block(after=_across())
    base = torch.full_like(inputs["x"], 7.0)
    got = run(rewritten(typed(block, inputs), PruneTokens(keys)), *inputs.values(), INDEX, base)[0]
    if keys == "absent":
        samples = [
            on_kept(block, _of_one_sample(inputs, s), INDEX[s : s + 1], base[s : s + 1])[0] for s in (0, 1)
        ]
        wanted = torch.cat([torch.as_tensor(sample) for sample in samples])
    else:
        full = torch.as_tensor(block(inputs)[0])
        rows = torch.arange(2)[:, None]
        wanted = base.clone()
        wanted[rows, INDEX] = full[rows, INDEX]
    assert_equal([got], [wanted])


def test_a_layer_on_packed_tokens_runs_on_the_kept_ones() -> None:
    block = Block(before=lambda x, given: F.linear(x.flatten(0, 1), given["w"]).tanh().view(x.shape))
    inputs = make_inputs()
    base = torch.full_like(inputs["x"], 7.0)
    got = run(rewritten(typed(block, inputs), PruneTokens()), *inputs.values(), INDEX, base)
    assert_equal(got, on_kept(block, inputs, INDEX, base))


def test_each_query_counts_the_words_of_its_own_sample() -> None:
    inputs = _inputs()
    graph = typed(Block(after=_across()), inputs).graph
    symbol = find_token_stream(graph).symbol
    (node,) = [n for n in graph.nodes if is_varlen(n)]
    assert node_flops(node).subs(symbol, N) == 4 * N * sum(WORDS) * H * D


@pytest.mark.parametrize("changed", [{"causal": True}, {"dropout_p": 0.5}, {"window_size_left": 2}])
def test_a_query_that_knows_its_place_is_refused(changed: dict[str, object]) -> None:
    graph = typed(Block(after=_across(**changed)), _inputs()).graph
    with pytest.raises(UnsupportedGraphError, match="is causal, windowed, paged or drops attention"):
        find_token_stream(graph)


def test_packed_self_attention_is_refused() -> None:
    def after(x: Tensor, given: Inputs) -> Tensor:
        heads = x.unflatten(-1, (H, D))
        packed = heads.reshape(-1, H, D)
        begins = torch.arange(0, N * 3, N, dtype=torch.int32)
        return x + attend_packed(heads, packed, packed, begins, N)

    graph = typed(Block(after=after), _inputs()).graph
    with pytest.raises(UnsupportedGraphError, match="requires packed queries of the stream, and keys from"):
        find_token_stream(graph)


def test_samples_of_unlike_lengths_are_refused() -> None:
    def after(x: Tensor, given: Inputs) -> Tensor:
        keys = F.linear(given["words"], given["w"]).unflatten(-1, (H, D))
        queries = x.reshape(-1, H, D)
        operator = torch.ops.flash_attn._flash_attn_varlen_forward.default
        tokens = x.shape[1]
        out = operator(queries, keys, keys, given["begins"], given["begins"], tokens, 4, 0.0, 1.0, False)[0]
        return x + out.reshape(x.shape)

    graph = typed(Block(after=after), _inputs()).graph
    with pytest.raises(UnsupportedGraphError, match="requires as many queries for one sample as for the"):
        find_token_stream(graph)


def test_packed_tokens_that_meet_a_table_of_all_tokens_are_refused() -> None:
    def after(x: Tensor, given: Inputs) -> Tensor:
        table = torch.arange(x.shape[0] * x.shape[1], dtype=x.dtype)[:, None]
        return (x.reshape(-1, C) + table).reshape(x.shape)

    graph = typed(Block(after=after), _inputs()).graph
    with pytest.raises(UnsupportedGraphError, match="meets a value whose tokens stand in another dimension"):
        find_token_stream(graph)
