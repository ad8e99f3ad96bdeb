"""FLOPs as expressions of sizes, against torch's counter on graphs that really run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.passes.graphs import capture_program, rewritten
from tests.passes.toy_block import (
    CACHED,
    TEXT,
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
from toprovar_compiler.passes.flops import KEPT, dense_flops, pruned_flops
from toprovar_compiler.passes.graph_tools import expr_of, placeholders, value_of
from toprovar_compiler.passes.prune_tokens import PrunedKeys, PruneTokens
from toprovar_compiler.passes.token_axis import find_token_stream

BOTH: tuple[PrunedKeys, ...] = ("absent", "computed")


def _counted(program: Callable[..., object], *arguments: Tensor | Inputs) -> int:
    """What torch counts when it runs; attention as the two products that it is made of."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        program(*arguments)
    return counter.get_total_flops()


def _at(expression: sympy.Expr, gm: fx.GraphModule, inputs: Inputs, kept: int | None = None) -> int:
    """The expression's value at the sizes of ``inputs``."""
    sizes: dict[sympy.Expr, int] = {} if kept is None else {KEPT: kept}
    for node, tensor in zip(placeholders(gm.graph), inputs.values(), strict=True):
        for symbol, size in zip(value_of(node).shape, tensor.shape, strict=True):
            if isinstance(symbol, torch.SymInt):
                sizes[expr_of(symbol)] = size
    value = expression.subs(sizes)
    assert value.is_Integer, f"{expression} has symbols that no input tells"
    return int(value)


def _cross(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    return sdpa(q, k, v, given) + sdpa(q, given["text"], given["text"], given)


def _grouped(q: Tensor, k: Tensor, v: Tensor, given: Inputs) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)


BLOCKS = {
    "plain": Block(),
    "with cross-attention": Block(_cross),
    "grouped queries": Block(_grouped),
    "with products around": Block(
        before=lambda x, g: F.linear(x, g["w"]), after=lambda x, g: x + F.linear(x, g["w"], g["b"]) @ g["w"]
    ),
    "product of weights": Block(before=lambda x, g: F.linear(x, g["w"] @ g["w"])),
}


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: F.linear(x, torch.ones(5, 8), torch.ones(5)),
    "matmul": lambda x: x @ torch.ones(8, 7),
    "bmm": lambda x: torch.bmm(x, x.mT),
    "mm": lambda x: torch.mm(x[0], x[1].t()),
    "addmm": lambda x: torch.addmm(torch.ones(6), x[0], torch.ones(8, 6)),
    "conv1d": lambda x: F.conv1d(x, torch.ones(4, 6, 3)),
    "conv2d": lambda x: F.conv2d(x[:, None], torch.ones(4, 1, 3, 2), padding=1),
    "sdpa": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None, :, :3]),
    "none": lambda x: x.softmax(-1) * 2,
}


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_ops_count_as_torch_counts_them(op: Callable[[Tensor], Tensor]) -> None:
    inputs = {"x": torch.ones(2, 6, 8)}
    gm = capture_program(lambda given: op(given["x"]), inputs, {})
    assert dense_flops(gm.graph) == _counted(gm, *inputs.values())


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_dense_blocks_count_as_torch_counts_them(block: Block) -> None:
    gm = captured(block, make_inputs())
    expression = dense_flops(gm.graph)
    for cached, tokens in ((CACHED, N), (7, 4)):
        inputs = make_inputs(cached)
        inputs["x"] = inputs["x"][:, :tokens].contiguous()
        assert _at(expression, gm, inputs) == _counted(block, inputs)


def test_the_expression_of_a_small_block() -> None:
    """By hand: the packed and the last projection, QK^T and AV over the cached and the new keys."""
    gm = captured(Block(), make_inputs())
    tokens = find_token_stream(gm.graph).symbol
    (cached,) = {expr_of(value_of(placeholders(gm.graph)[1]).shape[2])}
    projections = 2 * B * tokens * C * (3 * C) + 2 * B * tokens * C * C
    attention = 2 * B * H * tokens * (cached + tokens) * (D + D)
    assert sympy.expand(dense_flops(gm.graph) - projections - attention) == 0


@pytest.mark.parametrize("keys", BOTH)
@pytest.mark.parametrize("cached", [0, CACHED])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_pruned_blocks_count_as_torch_counts_them(block: Block, cached: int, keys: PrunedKeys) -> None:
    inputs = make_inputs(cached)
    gm = typed(block, inputs)
    expression = pruned_flops(gm.graph, find_token_stream(gm.graph), keys)
    pruned = rewritten(gm, PruneTokens(keys))
    for kept in (1, 4, N):
        index = torch.arange(kept).repeat(B, 1)
        counted = _counted(pruned, *inputs.values(), index, torch.zeros_like(inputs["x"]))
        assert _at(expression, gm, inputs, kept) == counted


def test_all_tokens_kept_cost_what_the_dense_block_costs() -> None:
    gm = typed(BLOCKS["with cross-attention"], make_inputs())
    stream = find_token_stream(gm.graph)
    pruned = pruned_flops(gm.graph, stream, "absent")
    assert sympy.expand(pruned.subs(KEPT, stream.symbol) - dense_flops(gm.graph)) == 0


def test_pruned_keys_that_are_computed_cost_more_than_absent_ones() -> None:
    gm = typed(Block(), make_inputs())
    stream = find_token_stream(gm.graph)
    absent, computed = (pruned_flops(gm.graph, stream, keys) for keys in BOTH)
    difference = sympy.expand(computed - absent)
    # keys and values of all tokens, once more the packed projection; queries meet N - K keys more
    projection = 2 * B * C * 3 * C * stream.symbol
    attention = 2 * B * H * KEPT * (stream.symbol - KEPT) * 2 * D
    assert sympy.expand(difference - projection - attention) == 0


def test_the_prompts_share_does_not_shrink() -> None:
    """Cross-attention: as many text keys for each kept token."""
    plain, cross = (typed(Block(attend), make_inputs()) for attend in (sdpa, _cross))
    streams = [find_token_stream(gm.graph) for gm in (plain, cross)]
    one, two = (
        pruned_flops(gm.graph, stream, "absent").subs(stream.symbol, N)
        for gm, stream in zip((plain, cross), streams, strict=True)
    )
    cached = (two - one).free_symbols - {KEPT}
    more = (two - one).subs(dict.fromkeys(cached, CACHED))
    assert sympy.expand(more - 2 * B * H * KEPT * TEXT * (D + D)) == 0
