"""Token typing: which dimension of which value carries the tokens.

The token count is the symbol of the self-attention's query length. One placeholder, the residual stream
``x`` [B, N, C], brings the tokens in. Every value of a block then is one of

- *free*: its sizes do not mention N (weights, conditions, the prompt, the cache);
- *shared*: mentions N but does not come from ``x`` (a rope table, an ``arange``): same for all samples;
- *stream*: comes from ``x``; its token dimension has size N (kind "token"), or N plus the cache's length
  after the concatenation with the cache (kind "context"), or times the batch (kind "packed").

A graph is typed only if every op on the stream is known to act on each token alone, or is attention with
the stream on its query side. Everything else is refused with a reason: all or nothing for a graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy
import torch
from torch import fx

from toprovar_compiler.errors import NoAttentionError, UnsupportedGraphError
from toprovar_compiler.passes.attention import (
    SDPA,
    Attention,
    find_attention,
    is_self_attention,
)
from toprovar_compiler.passes.attention_axes import joins_tokens, type_attention, type_cache
from toprovar_compiler.passes.axes import Axes
from toprovar_compiler.passes.graph_tools import (
    ancestors,
    aten,
    axes_with,
    carries,
    descendants,
    expr_of,
    outputs,
    placeholders,
    symbols_of,
    value_of,
)
from toprovar_compiler.passes.packed_tokens import is_packed_size, is_varlen, repack, type_varlen
from toprovar_compiler.passes.token_rules import (
    RESHAPING,
    first_value,
    is_pointwise,
    refuse,
    track,
)


@dataclass(frozen=True)
class TokenStream:
    """The typed graph: what a pass needs in order to run it on fewer tokens."""

    symbol: sympy.Symbol
    source: fx.Node
    result: int
    axes: dict[fx.Node, Axes]
    attention: tuple[Attention, ...]

    def is_shared(self, node: fx.Node) -> bool:
        """Mentions the token count, but does not come from the stream."""
        return node not in self.axes and carries(node, self.symbol)


def find_token_stream(graph: fx.Graph) -> TokenStream:
    """Type a captured graph.

    Raises:
        UnsupportedGraphError: with the reason why this graph cannot run on fewer tokens.
    """
    source, attention = find_source(graph)
    symbol = _token_symbol(attention)
    result = _find_result(graph, source)
    axes: dict[fx.Node, Axes] = {}
    if value_of(source).dim() != 3 or axes_with(value_of(source), symbol) != [1]:
        raise UnsupportedGraphError("requires a residual stream [B, N, C]: the tokens stand elsewhere")
    axes[source] = Axes(0, 1, "token")
    reached = descendants(source)
    for node in graph.nodes:
        if node in reached and node is not source:
            axes[node] = _type_node(node, axes, symbol)
    stream = TokenStream(symbol, source, result, axes, tuple(attention))
    _check_outputs(graph, stream)
    return stream


def find_source(graph: fx.Graph) -> tuple[fx.Node, list[Attention]]:
    """The residual stream's placeholder, and the attention that runs over the stream itself."""
    everything = find_attention(graph)
    if not everything:
        raise NoAttentionError("no attention in this graph")
    found: dict[fx.Node, list[Attention]] = {}
    for node in placeholders(graph):
        value = value_of(node)
        if not isinstance(value, torch.Tensor) or value.dim() < 3 or not value.is_floating_point():
            continue
        reached = descendants(node)
        own = [a for a in everything if is_self_attention(a, reached) and _same_length(a.query, node)]
        if own and _matching_outputs(graph, node):
            found[node] = own
    if len(found) > 1:
        found = {
            n: own for n, own in found.items() if _on_residual_path(graph, n) and _gives_values(n, own)
        }
    if not found:
        raise UnsupportedGraphError(
            "no residual stream: no input of the shape of an output feeds the attention"
        )
    if len(found) > 1:
        raise UnsupportedGraphError("more than one token stream")
    return next(iter(found.items()))


def _same_length(query: fx.Node, source: fx.Node) -> bool:
    return bool(expr_of(value_of(query).shape[-2]) == expr_of(value_of(source).shape[1]))


def _token_symbol(attention: list[Attention]) -> sympy.Symbol:
    lengths = {expr_of(value_of(a.query).shape[-2]) for a in attention}
    if len(lengths) > 1:
        raise UnsupportedGraphError("attention over more than one token count")
    (length,) = lengths
    if not isinstance(length, sympy.Symbol):
        raise UnsupportedGraphError(f"the token count is constant in this graph ({length})")
    return length


def _matching_outputs(graph: fx.Graph, source: fx.Node) -> list[int]:
    """Of the stream's dtype; where there is none, of another one: under autocast a first block may widen it."""
    reached, stream = descendants(source), value_of(source)
    shape = [expr_of(size) for size in stream.shape]
    found = {
        position: value_of(item).dtype
        for position, item in enumerate(outputs(graph))
        if isinstance(item, fx.Node)
        and item in reached
        and item is not source  # returned as it came in: nothing is made of it
        and isinstance(value_of(item), torch.Tensor)
        and value_of(item).is_floating_point()
        and [expr_of(size) for size in value_of(item).shape] == shape
    }
    return [position for position, dtype in found.items() if dtype == stream.dtype] or list(found)


def _find_result(graph: fx.Graph, source: fx.Node) -> int:
    matching = _matching_outputs(graph, source)
    if len(matching) != 1:
        raise UnsupportedGraphError(
            f"requires one output of the residual stream's shape, got {len(matching)}"
        )
    return matching[0]


def _on_residual_path(graph: fx.Graph, source: fx.Node) -> bool:
    """Whether plain additions (and casts) lead from an output of the graph back to ``source``."""
    stack = [outputs(graph)[position] for position in _matching_outputs(graph, source)]
    while stack:
        node = stack.pop()
        if node is source:
            return True
        if node.op == "call_function" and node.target in (aten.add.Tensor, aten._to_copy.default):
            stack.extend(node.all_input_nodes)
    return False


def _gives_values(source: fx.Node, attention: list[Attention]) -> bool:
    """A rotary table turns queries and keys; values are made of the stream alone."""
    reached = descendants(source)
    return all(each.value in reached for each in attention)


def _type_node(node: fx.Node, axes: dict[fx.Node, Axes], symbol: sympy.Symbol) -> Axes:
    operands = [m for m in node.all_input_nodes if m in axes]
    if node.target is SDPA:
        return type_attention(node, axes, symbol)
    if node.target is aten.cat.default and joins_tokens(node, operands, axes):
        return type_cache(node, operands, axes, symbol)
    if is_varlen(node):
        return type_varlen(node, axes, symbol)
    landed = {_land(node, m, axes[m], symbol) for m in operands}
    if len(landed) != 1:
        raise refuse(node, "brings different dimensions of the stream together")
    (own,) = landed
    _check_sizes(node, own, symbol)
    _check_companions(node, own, operands, symbol)
    return own


def _land(node: fx.Node, operand: fx.Node, own: Axes, symbol: sympy.Symbol) -> Axes:
    if is_varlen(operand) and node.args[1:] != (0,):
        raise refuse(node, "reads more of packed attention than its result")
    if own.kind == "packed":
        apart = repack(node, operand, own, symbol)
        if apart is not None:
            return apart
    try:
        return replace(own, batch=track(node, operand, own.batch), token=track(node, operand, own.token))
    except UnsupportedGraphError:
        packed = repack(node, operand, own, symbol)
        if packed is None:
            raise
        return packed


def _check_sizes(node: fx.Node, own: Axes, symbol: sympy.Symbol) -> None:
    value = value_of(node)
    for item in value if isinstance(value, (tuple, list)) else [value]:
        if axes_with(item, symbol) != [own.token]:
            raise refuse(node, "does not keep the tokens in one dimension")
        size = expr_of(item.shape[own.token])
        if own.kind == "packed" and is_packed_size(size, symbol):
            continue
        rest = sympy.expand(size - symbol)
        if symbol in rest.free_symbols or (own.kind == "token") != (rest == 0):
            raise refuse(node, "changes the number of tokens")


def _check_companions(node: fx.Node, own: Axes, operands: list[fx.Node], symbol: sympy.Symbol) -> None:
    """Operands beside the stream: sizes may mention N in reshapes only; tensors must fit the token axis."""
    rank = first_value(node).dim()
    for other in node.all_input_nodes:
        value = value_of(other)
        if isinstance(value, (torch.SymInt, torch.SymFloat)):
            if symbol in symbols_of(value) and not (node.target in RESHAPING and _is_polynomial(value)):
                raise refuse(node, "uses the token count as a number")
        elif other not in operands and isinstance(value, torch.Tensor):
            if carries(other, symbol):
                aligned = is_pointwise(node) or node.target is aten.cat.default
                place = own.token - rank + value.dim()
                if own.kind != "token" or not aligned or axes_with(value, symbol) != [place]:
                    raise refuse(node, "meets a value whose tokens stand in another dimension")
            elif is_pointwise(node):
                place = own.token - rank + value.dim()
                if place >= 0 and expr_of(value.shape[place]) != 1:
                    raise refuse(node, "meets a value of a fixed number of tokens")


def _is_polynomial(size: torch.SymInt | torch.SymFloat) -> bool:
    """Whether the size is made of sums and products only, so that it can be computed anew for K tokens."""
    expr = size.node.expr
    return bool(expr.is_polynomial(*expr.free_symbols))


def _check_outputs(graph: fx.Graph, stream: TokenStream) -> None:
    """Only keys and values may be returned beside the stream: they alone may become shorter."""
    on_path = result_path(graph, stream)
    keys = ancestors([n for a in stream.attention for n in (a.key, a.value)]) - on_path
    for position, item in enumerate(outputs(graph)):
        if not isinstance(item, fx.Node) or position == stream.result:
            continue
        if isinstance(value_of(item), torch.SymInt) and carries(item, stream.symbol):
            raise UnsupportedGraphError("returns the token count as a number")
        if item in stream.axes and item not in keys:
            raise UnsupportedGraphError("returns a second value of the tokens")


def result_path(graph: fx.Graph, stream: TokenStream) -> set[fx.Node]:
    """Stream values that the result needs for its own tokens: all but what only makes keys and values."""
    own = {a.node: a for a in stream.attention}
    stack, seen = [outputs(graph)[stream.result]], set()
    while stack:
        node = stack.pop()
        if node in stream.axes and node not in seen:
            seen.add(node)
            stack.extend([own[node].query] if node in own else node.all_input_nodes)
    return seen
