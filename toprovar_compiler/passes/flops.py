"""Floating-point operations of a typed graph, as expressions of its symbols.

Matrix products and attention are counted (2 per multiply-add), as ``torch.utils.flop_counter`` does.
"""

from __future__ import annotations

import sympy
from torch import fx

from toprovar_compiler.passes.attention import SDPA, read_attention
from toprovar_compiler.passes.graph_tools import ancestors, aten, expr_of, value_of
from toprovar_compiler.passes.packed_tokens import is_varlen
from toprovar_compiler.passes.prune_tokens import PrunedKeys
from toprovar_compiler.passes.token_axis import TokenStream, result_path
from toprovar_compiler.passes.token_rules import argument

KEPT = sympy.Symbol("toprovar_K", integer=True, positive=True)


_CONVOLUTIONS = (
    aten.convolution.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
)


def node_flops(node: fx.Node) -> sympy.Expr:
    """2 x multiply-adds of one node; 0 for everything that is neither a product nor attention."""
    if node.op != "call_function":
        return sympy.Integer(0)
    if node.target is SDPA:
        attention = read_attention(node)
        b, h, nq, d = (expr_of(size) for size in value_of(attention.query).shape)
        nk, dv = expr_of(value_of(attention.key).shape[-2]), expr_of(value_of(attention.value).shape[-1])
        return 2 * b * h * nq * nk * (d + dv)
    if is_varlen(node):
        query, key, samples = (value_of(argument(node, name)) for name in ("q", "k", "cu_seqlens_k"))
        each = expr_of(query.shape[0]) / (expr_of(samples.shape[0]) - 1)
        return 4 * each * expr_of(key.shape[0]) * expr_of(query.shape[1]) * expr_of(query.shape[2])
    if node.target in (aten.linear.default, aten.matmul.default, aten.bmm.default, aten.mm.default):
        contracted = value_of(node.args[0]).shape[-1]
        return 2 * expr_of(contracted) * sympy.prod([expr_of(size) for size in value_of(node).shape])
    if node.target is aten.addmm.default:
        contracted = value_of(node.args[1]).shape[-1]
        return 2 * expr_of(contracted) * sympy.prod([expr_of(size) for size in value_of(node).shape])
    if node.target in _CONVOLUTIONS:
        weight = value_of(node.args[1])
        per_output = sympy.prod([expr_of(size) for size in weight.shape[1:]])
        return 2 * per_output * sympy.prod([expr_of(size) for size in value_of(node).shape])
    return sympy.Integer(0)


def dense_flops(graph: fx.Graph) -> sympy.Expr:
    """FLOPs of the whole graph."""
    return sympy.expand(sum((node_flops(node) for node in graph.nodes), sympy.Integer(0)))


def pruned_flops(graph: fx.Graph, stream: TokenStream, pruned_keys: PrunedKeys) -> sympy.Expr:
    """FLOPs of the graph after ``PruneTokens``, with ``KEPT`` as the number of kept tokens."""
    computed = pruned_keys == "computed"
    for_all = _keys_of(stream) if computed else set()
    kept = result_path(graph, stream) if computed else set(stream.axes)
    total = sympy.Integer(0)
    for node in graph.nodes:
        flops = node_flops(node)
        if node not in stream.axes or node in for_all:
            total += flops
        if node in kept:
            total += _for_kept(node, flops, stream, computed)
    return sympy.expand(total)


def _keys_of(stream: TokenStream) -> set[fx.Node]:
    """Stream values that the keys and values of the stream's attention are made of."""
    return ancestors([n for a in stream.attention for n in (a.key, a.value)]) & set(stream.axes)


def _for_kept(node: fx.Node, flops: sympy.Expr, stream: TokenStream, computed: bool) -> sympy.Expr:
    if computed and any(node is a.node for a in stream.attention):
        # queries are kept tokens, keys are all of them: only the factor of the queries shrinks
        return flops * KEPT / stream.symbol
    return flops.subs(stream.symbol, KEPT)
