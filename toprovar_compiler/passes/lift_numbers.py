"""Graphs that differ in a few numbers only become one graph, which is given the numbers.

A block that knows its scale as a number of Python (where in a table of positions the scale begins, say) makes
Dynamo trace a graph for each scale. :func:`form` is equal for graphs like that, :func:`numbers` says in what
they may differ, and :class:`LiftNumbers` makes the one graph.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from toprovar_compiler.passes.base import source_uuid
from toprovar_compiler.passes.graph_tools import aten, placeholders, value_of

NUMBER = "toprovar_number"

# Which arguments may differ: where something begins or ends, and what that is computed from.
_PLACES: Mapping[Any, tuple[int, ...]] = {
    aten.slice.Tensor: (2, 3),
    aten.select.int: (2,),
    operator.add: (0, 1),
    operator.sub: (0, 1),
    operator.mul: (0, 1),
}
_ANY = "any number"

Groups = tuple[tuple[int, ...], ...]
"""Positions in :func:`numbers`; those of one group always are the same number."""


def numbers(graph: fx.Graph) -> tuple[int, ...]:
    """The numbers in which a graph may differ from one of the same :func:`form`, in the graph's order."""
    return tuple(int(node.args[place]) for node, place in _places(graph))  # type: ignore[arg-type]


def form(gm: fx.GraphModule) -> Hashable:
    """All that makes a graph but its :func:`numbers`: operators, and how they are connected; of its inputs
    dtypes, devices, constant sizes and strides, and which of the others are equal."""
    free = set(_places(gm.graph))
    index = {node: position for position, node in enumerate(gm.graph.nodes)}
    symbols: dict[Any, str] = {}

    def described(item: Any) -> Hashable:
        if isinstance(item, fx.Node):
            return "node", index[item]
        if isinstance(item, (tuple, list)):
            return type(item).__name__, tuple(described(each) for each in item)
        if isinstance(item, dict):
            return tuple((name, described(each)) for name, each in item.items())
        if isinstance(item, slice):
            return "slice", described((item.start, item.stop, item.step))
        return type(item).__name__, item

    described_nodes: list[Hashable] = []
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            described_nodes.append(_form_of_input(value_of(node), symbols))
            continue
        given = tuple(
            _ANY if (node, place) in free else described(argument) for place, argument in enumerate(node.args)
        )
        target = _Held(_attribute(gm, node.target)) if node.op == "get_attr" else node.target
        described_nodes.append((node.op, target, given, described(node.kwargs)))
    return tuple(described_nodes)


class LiftNumbers:
    """Numbers become inputs, one for each group, behind all others.

    Before, with the groups ``((0, 1),)``::

        slice(table, 4, 21, 21 + N)

    After::

        toprovar_number: 21                                    # a placeholder
        slice(table, 4, toprovar_number, toprovar_number + N)
    """

    name = "lift-numbers"

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def uuid(self) -> str:
        return source_uuid(self, self.groups)

    def __call__(self, gm: fx.GraphModule) -> int:
        """Rewrite ``gm``; returns how many numbers became inputs. Raises nothing."""
        places = list(_places(gm.graph))
        for count, group in enumerate(self.groups):
            with gm.graph.inserting_after(placeholders(gm.graph)[-1]):
                number = gm.graph.placeholder(f"{NUMBER}_{count}")
            for position in group:
                node, place = places[position]
                node.update_arg(place, number)
        return len(self.groups)


@dataclass(frozen=True)
class _Held:
    """A tensor that the graph holds: it is compared as an object, and kept, so that no other takes its place."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _attribute(gm: fx.GraphModule, target: object) -> Any:
    return functools.reduce(getattr, str(target).split("."), gm)


def _places(graph: fx.Graph) -> Iterator[tuple[fx.Node, int]]:
    for node in graph.nodes:
        for place in _PLACES.get(node.target, ()) if node.op == "call_function" else ():
            if place < len(node.args) and type(node.args[place]) is int:
                yield node, place


def _form_of_input(value: Any, symbols: dict[Any, str]) -> Hashable:
    if isinstance(value, Tensor):
        sizes = tuple(_form_of_size(size, symbols) for size in (*value.shape, *value.stride()))
        return type(value).__name__, value.dtype, value.device, value.requires_grad, sizes
    if isinstance(value, torch.SymInt):
        return "size", _form_of_size(value, symbols)
    return type(value).__name__, value


def _form_of_size(size: Any, symbols: dict[Any, str]) -> Hashable:
    """A constant, or an expression in which symbols are counted as they first appear."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    for symbol in sorted(size.node.expr.free_symbols, key=str):
        symbols.setdefault(symbol, f"size{len(symbols)}")
    named = {symbol: sympy.Symbol(name, integer=True) for symbol, name in symbols.items()}
    return str(size.node.expr.xreplace(named))
