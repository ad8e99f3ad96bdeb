"""What the sizes of a block call mean, and the FLOPs that they make."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import sympy
import torch
from torch import fx

from toprovar_compiler.passes.attention import Attention
from toprovar_compiler.passes.flops import dense_flops
from toprovar_compiler.passes.graph_tools import expr_of, value_of


class Sizes(NamedTuple):
    """What one combination of sizes means: N, the number of keys, the batch rows."""

    tokens: int
    keys: int
    rows: int


class SizeReader:
    """Reads sizes and FLOPs off a call's arguments, once per combination of sizes."""

    def __init__(self, graph: fx.Graph, inputs: list[fx.Node], attention: Attention) -> None:
        values = [value_of(node) for node in inputs]
        self.positions = [i for i, value in enumerate(values) if isinstance(value, torch.SymInt)]
        known = {values[i].node.expr: place for place, i in enumerate(self.positions)}
        self.symbols = [expr for expr in known if isinstance(expr, sympy.Symbol)]
        self._places = [known[symbol] for symbol in self.symbols]
        query, key = value_of(attention.query), value_of(attention.key)
        tokens, keys = expr_of(query.shape[-2]), expr_of(key.shape[-2])
        self._evaluate = sympy.lambdify(self.symbols, [tokens, keys, expr_of(query.shape[0])], "math")
        self._flops = sympy.lambdify(self.symbols, dense_flops(graph), "math")
        cached = keys - tokens
        self._cached = self.symbols.index(cached) if cached in self.symbols else None
        self._tokens = self.symbols.index(tokens) if tokens in self.symbols else None
        self.of = functools.cache(self._sizes_of)

    def __call__(self, arguments: Sequence[Any]) -> tuple[tuple[int, ...], Sizes]:
        key = tuple([arguments[i] for i in self.positions])
        return key, self.of(key)

    def _sizes_of(self, key: tuple[int, ...]) -> Sizes:
        return Sizes(*(int(number) for number in self._evaluate(*self.of_symbols(key))))

    def of_symbols(self, key: tuple[int, ...]) -> list[int]:
        return [key[place] for place in self._places]

    def flops(self, key: tuple[int, ...]) -> int:
        """FLOPs of the dense graph at these sizes."""
        return int(self._flops(*self.of_symbols(key)))

    def flops_if_dense(self, key: tuple[int, ...], prefix: int) -> int:
        """The same with the cache as long as if nothing had been pruned at earlier scales."""
        sizes = self.of_symbols(key)
        if self._cached is not None:
            sizes[self._cached] = prefix
        return int(self._flops(*sizes))

    def flops_at(self, key: tuple[int, ...], tokens: int, prefix: int) -> int | None:
        """The same at another scale; None where this graph knows one number of tokens or keys only."""
        if self._cached is None or self._tokens is None:
            return None
        sizes = self.of_symbols(key)
        sizes[self._cached], sizes[self._tokens] = prefix, tokens
        return int(self._flops(*sizes))
