"""Runs a typed graph on the kept tokens only."""

from __future__ import annotations

import functools
import operator
from typing import Any, Literal

import sympy
import torch
from torch import fx

from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.attention import SDPA, read_attention
from toprovar_compiler.passes.axes import Axes
from toprovar_compiler.passes.base import source_uuid
from toprovar_compiler.passes.graph_tools import (
    ancestors,
    aten,
    expr_of,
    outputs,
    placeholders,
    value_of,
)
from toprovar_compiler.passes.match_attention import MARK
from toprovar_compiler.passes.packed_tokens import is_varlen, query_lengths
from toprovar_compiler.passes.token_axis import TokenStream, find_token_stream
from toprovar_compiler.passes.token_rules import first_value, is_pointwise

INDEX = "toprovar_keep_index"
BASE = "toprovar_base"

PrunedKeys = Literal["absent", "computed"]


class PruneTokens:
    """Gather at the residual stream's input, scatter at its output, everything between on K tokens.

    Two placeholders are added behind the graph's own: ``toprovar_keep_index`` [B, K] int64 (which tokens,
    one row per batch row) and ``toprovar_base`` [B, N, C] (what the tokens that are not kept become).

    Before::

        x: [B, N, C]                 y = block(x, rope[N, D], cache)
        return y, cat([cache.k, k]), cat([cache.v, v])

    After (``pruned_keys="absent"``)::

        xk = gather(x, 1, keep_index)          yk = block(xk, gather(rope, 0, keep_index), cache)
        return scatter(base, 1, keep_index, yk), cat([cache.k, kk]), cat([cache.v, vk])

    The returned keys and values are then K long. With ``pruned_keys="computed"`` the keys and values of
    all N tokens are computed and returned, and only the query side of the attention and what follows it
    runs on K tokens.

    A value that carries tokens but does not come from ``x`` (a rope slice, an ``arange``) is computed for
    all N positions and gathered where it meets the stream, so that each sample gets its own rows.
    """

    def __init__(self, pruned_keys: PrunedKeys = "absent") -> None:
        self.pruned_keys = pruned_keys

    @property
    def name(self) -> str:
        return f"prune-tokens-{self.pruned_keys}"

    def uuid(self) -> str:
        return source_uuid(self, self.pruned_keys)

    def __call__(self, gm: fx.GraphModule) -> int:
        """Rewrite ``gm``; returns the number of gathers and scatters inserted.

        Raises:
            UnsupportedGraphError: the graph cannot be typed (see ``find_token_stream``).
        """
        stream = find_token_stream(gm.graph)
        rewriter = _Rewriter(gm.graph, stream, self.pruned_keys == "computed")
        gm.graph = rewriter.run()
        return rewriter.moves


class _Rewriter:
    """Interprets the graph twice at once, for all and for the kept tokens; dead code goes at the end."""

    def __init__(self, graph: fx.Graph, stream: TokenStream, keys_of_all: bool) -> None:
        self.old, self.stream = graph, stream
        self.new = fx.Graph()
        self.all_tokens: dict[fx.Node, fx.Node] = {}
        self.kept: dict[fx.Node, Any] = {}
        self.moves = 0
        self.for_all = self._needed_for_all() if keys_of_all else set()

    def _needed_for_all(self) -> set[fx.Node]:
        keys = [node for a in self.stream.attention for node in (a.key, a.value)]
        return ancestors(keys) & set(self.stream.axes)

    def run(self) -> fx.Graph:
        inputs = placeholders(self.old)
        for node in inputs:
            self.all_tokens[node] = self._copy(node)
        self._add_inputs()
        self.kept[self.stream.source] = self._gather(
            self.all_tokens[self.stream.source], value_of(self.stream.source), Axes(0, 1, "token"), 3
        )
        for node in self.old.nodes:
            if node.op == "output":
                self._finish()
            elif node.op != "placeholder":
                self._emit(node)
        self.new.eliminate_dead_code()
        return self.new

    def _copy(self, node: fx.Node) -> fx.Node:
        new = self.new.node_copy(node, lambda n: self.all_tokens[n])
        new.meta = dict(node.meta)
        return new

    def _add_inputs(self) -> None:
        self.index = self.new.placeholder(INDEX)
        self.base = self.new.placeholder(BASE)
        self.count = self.new.call_function(aten.sym_size.int, (self.index, 1))

    def _emit(self, node: fx.Node) -> None:
        in_stream = node in self.stream.axes
        reads_stream = any(operand in self.stream.axes for operand in node.all_input_nodes)
        if isinstance(value_of(node), torch.SymInt) and reads_stream:
            # A size read off the stream: the tensor that it is read off may exist for kept tokens only.
            self.all_tokens[node] = self._size(expr_of(value_of(node)), {})
        elif not in_stream or node in self.for_all:
            self.all_tokens[node] = self._copy(node)
            if in_stream:
                # The entropy that is asked for is that of the kept tokens' attention.
                self.all_tokens[node].meta.pop(MARK, None)
        if in_stream:
            self.kept[node] = self._copy_for_kept(node)

    def _copy_for_kept(self, node: fx.Node) -> fx.Node:
        attention = read_attention(node) if node.target is SDPA else None
        keys = (attention.key, attention.value) if attention is not None else ()
        lengths = query_lengths(node) if is_varlen(node) else None

        def argument(operand: fx.Node) -> Any:
            if operand is lengths:
                return self.new.node_copy(operand, self._count_of)
            if operand in keys and (operand in self.for_all or operand not in self.stream.axes):
                return self.all_tokens[operand]
            if operand in self.stream.axes:
                return self.kept[operand]
            if isinstance(value_of(operand), torch.SymInt):
                return self._count_of(operand)
            if self.stream.is_shared(operand):
                return self._gather_for(operand, node)
            return self.all_tokens[operand]

        new = self.new.node_copy(node, argument)
        if attention is not None:
            new.update_arg(0, self.kept[attention.query])  # also where the query is the key, too
        if new.target is aten.view.default:
            # A gathered operand may lie otherwise in memory than the one that this was a view of.
            new.target = aten.reshape.default
        new.meta = {k: v for k, v in node.meta.items() if k not in ("val", "tensor_meta", "example_value")}
        return new

    def _count_of(self, node: fx.Node) -> Any:
        """The SymInt ``node`` with K in place of N."""
        expr = expr_of(value_of(node))
        if self.stream.symbol not in expr.free_symbols:
            return self.all_tokens[node]
        if node not in self.kept:
            self.kept[node] = self._size(expr, {self.stream.symbol: self.count})
        return self.kept[node]

    def _size(self, expr: sympy.Expr, known: dict[sympy.Symbol, Any]) -> Any:
        """A number made of sizes, computed anew from the inputs; ``known`` says what symbols stand for."""
        if isinstance(expr, sympy.Integer):
            return int(expr)
        if isinstance(expr, sympy.Symbol):
            return known[expr] if expr in known else self._symbol(expr)
        if isinstance(expr, sympy.Pow):
            parts = [self._size(expr.base, known)] * int(expr.exp)
        else:
            parts = [self._size(part, known) for part in expr.args]
        combine = operator.add if isinstance(expr, sympy.Add) else operator.mul
        return functools.reduce(lambda one, two: self.new.call_function(combine, (one, two)), parts)

    def _symbol(self, symbol: sympy.Symbol) -> fx.Node:
        for node in placeholders(self.old):
            value = value_of(node)
            if isinstance(value, torch.SymInt) and expr_of(value) == symbol:
                return self.all_tokens[node]
            if isinstance(value, torch.Tensor):
                for axis, size in enumerate(value.shape):
                    if expr_of(size) == symbol:
                        return self.new.call_function(aten.sym_size.int, (self.all_tokens[node], axis))
        raise UnsupportedGraphError(f"no input tells the size {symbol}")

    def _gather_for(self, shared: fx.Node, user: fx.Node) -> fx.Node:
        """The rows of a shared value that ``user``'s stream operand has, one set of rows per batch row."""
        own = self.stream.axes[user]
        rank = first_value(user).dim() if is_pointwise(user) or user.target is aten.cat.default else 4
        return self._gather(self.all_tokens[shared], value_of(shared), own, rank)

    def _gather(self, node: fx.Node, value: torch.Tensor, at: Axes, rank: int) -> fx.Node:
        """``gather`` along the token dimension with one index row per batch row, aligned to ``rank``."""
        call = self.new.call_function
        self.moves += 1
        sizes = [*[1] * (rank - value.dim()), *value.shape]
        for _ in range(rank - value.dim()):
            node = call(aten.unsqueeze.default, (node, 0))
        rows = call(aten.sym_size.int, (self.index, 0))
        if expr_of(sizes[at.batch]) == 1:
            spread: list[Any] = [-1] * rank
            spread[at.batch] = rows
            node = call(aten.expand.default, (node, spread))
        index_shape: list[Any] = [1] * rank
        index_shape[at.batch], index_shape[at.token] = rows, self.count
        index = call(aten.view.default, (self.index, index_shape))
        spread = [call(aten.sym_size.int, (node, axis)) for axis in range(rank)]
        spread[at.batch], spread[at.token] = rows, self.count
        index = call(aten.expand.default, (index, spread))
        return call(aten.gather.default, (node, at.token, index))

    def _finish(self) -> None:
        results: list[Any] = []
        for position, item in enumerate(outputs(self.old)):
            if position == self.stream.result:
                results.append(self._scatter(self.kept[item], value_of(item).dtype))
            elif not isinstance(item, fx.Node):
                results.append(item)
            elif item in self.all_tokens:
                results.append(self.all_tokens[item])
            else:
                results.append(self.kept[item])
        self.new.output(tuple(results))

    def _scatter(self, kept: fx.Node, dtype: torch.dtype) -> fx.Node:
        call = self.new.call_function
        self.moves += 1
        base = self.base
        if dtype != value_of(self.stream.source).dtype:
            base = call(aten.to.dtype, (base, dtype))
        width = call(aten.sym_size.int, (self.base, 2))
        index = call(aten.unsqueeze.default, (self.index, 2))
        index = call(aten.expand.default, (index, [-1, -1, width]))
        return call(aten.scatter.src, (base, 1, index, kept))
