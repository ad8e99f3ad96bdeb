"""Small helpers over FX graphs that every pass needs: values, symbols, copies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy
import torch
from torch import fx

aten = torch.ops.aten


def value_of(item: object) -> Any:
    """The fake value that a node carries (``meta["val"]``), or the item itself if it is no node."""
    return item.meta.get("val") if isinstance(item, fx.Node) else item


def expr_of(size: object) -> sympy.Expr:
    """A size (int or SymInt) as a sympy expression."""
    if isinstance(size, torch.SymInt):
        return size.node.expr
    return sympy.Integer(int(size))  # type: ignore[call-overload]


def symbols_of(value: object) -> set[sympy.Symbol]:
    """All symbols in a value's sizes; looks inside tuples and lists."""
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return set(value.node.expr.free_symbols)
    if isinstance(value, torch.Tensor):
        return set().union(*(symbols_of(size) for size in value.shape))
    if isinstance(value, (tuple, list)):
        return set().union(*(symbols_of(item) for item in value))
    return set()


def carries(item: object, symbol: sympy.Symbol) -> bool:
    """Whether the item's value has ``symbol`` in any of its sizes."""
    return symbol in symbols_of(value_of(item))


def axes_with(value: torch.Tensor, symbol: sympy.Symbol) -> list[int]:
    """Positions of the dimensions whose size mentions ``symbol``."""
    return [i for i, size in enumerate(value.shape) if symbol in expr_of(size).free_symbols]


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def outputs(graph: fx.Graph) -> list[Any]:
    """What the graph returns, as a list (entries may be nodes, numbers or None)."""
    (returned,) = graph.output_node().args
    return list(returned) if isinstance(returned, (tuple, list)) else [returned]


def calls(graph: fx.Graph, *targets: object) -> list[fx.Node]:
    """The call_function nodes of the given targets, in graph order."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target in targets]


def ancestors(roots: Iterable[fx.Node]) -> set[fx.Node]:
    """The roots and everything that they depend on."""
    seen: set[fx.Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return seen


def descendants(root: fx.Node) -> set[fx.Node]:
    """The root and all tensors computed from it; sizes read off it (SymInts) do not count as data."""
    seen: set[fx.Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node.op != "output" and node not in seen and not isinstance(value_of(node), (torch.SymInt, int)):
            seen.add(node)
            stack.extend(node.users)
    return seen


def clone(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy that shares nothing mutable with ``gm``: nodes and their meta are new, tensors are shared."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    returned = graph.graph_copy(gm.graph, mapping)
    graph.output(returned)
    for old, new in mapping.items():
        new.meta = dict(old.meta)
    # A name that is one: an exported graph is called "<lambda>", which no dump could be read with.
    copied = fx.GraphModule(gm, graph, class_name="Captured")
    copied.meta = dict(gm.meta)
    return copied
