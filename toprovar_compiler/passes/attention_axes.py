"""Token typing of attention, and of the concatenation that puts new keys behind the cache."""

from __future__ import annotations

from dataclasses import replace

import sympy
from torch import fx

from toprovar_compiler.passes.attention import read_attention
from toprovar_compiler.passes.axes import Axes
from toprovar_compiler.passes.graph_tools import axes_with, carries, expr_of, value_of
from toprovar_compiler.passes.token_rules import argument, refuse


def joins_tokens(node: fx.Node, operands: list[fx.Node], axes: dict[fx.Node, Axes]) -> bool:
    dim = int(argument(node, "dim", 0)) % value_of(operands[0]).dim()
    return any(axes[m].token == dim for m in operands)


def type_cache(
    node: fx.Node, operands: list[fx.Node], axes: dict[fx.Node, Axes], symbol: sympy.Symbol
) -> Axes:
    """``cat([cache, new keys])``: attention does not mind the order of keys, so the new ones may be fewer."""
    joined: list[fx.Node] = list(argument(node, "tensors"))
    if sum(carries(m, symbol) for m in joined) != 1:
        raise refuse(node, "joins tokens with other tokens")
    own = axes[operands[0]]
    last = joined[-1] is operands[0]
    if (not last and joined[0] is not operands[0]) or (own.kind == "context" and own.last != last):
        raise refuse(node, "puts the tokens between other keys")
    return replace(own, kind="context", last=last)


def type_attention(node: fx.Node, axes: dict[fx.Node, Axes], symbol: sympy.Symbol) -> Axes:
    attention = read_attention(node)
    if attention.query not in axes:
        raise refuse(node, "attends to the tokens from outside the stream")
    query = axes[attention.query]
    rank = value_of(attention.query).dim()
    if rank != 4 or query != Axes(0, 2, "token"):
        raise refuse(node, "requires queries of shape [B, H, N, D]")
    if attention.causal or attention.dropout:
        raise refuse(node, "is causal or drops attention at random")
    over_stream = attention.key in axes
    if over_stream != (attention.value in axes):
        raise refuse(node, "takes keys and values from different places")
    if over_stream and (axes[attention.key].batch, axes[attention.key].token) != (0, 2):
        raise refuse(node, "requires keys of shape [B, H, N, D]")
    if over_stream and axes[attention.key] != axes[attention.value]:
        raise refuse(node, "takes keys and values in different orders")
    if attention.mask is not None:
        _check_mask(node, attention.mask, over_stream, axes, symbol)
    return query


def _check_mask(
    node: fx.Node, mask: fx.Node, over_stream: bool, axes: dict[fx.Node, Axes], symbol: sympy.Symbol
) -> None:
    value = value_of(mask)
    if mask in axes or (over_stream and expr_of(value.shape[-1]) != 1):
        raise refuse(node, "has a mask over the keys of the stream, which would no longer fit")
    if carries(mask, symbol) and axes_with(value, symbol) != [value.dim() - 2]:
        raise refuse(node, "has a mask whose tokens stand in another dimension")
