"""Whatever numbers graphs differ in, each gets a variant that computes what it does."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tests.passes.graphs import rewritten
from toprovar_compiler import variants
from toprovar_compiler.passes.graph_tools import aten
from toprovar_compiler.passes.lift_numbers import LiftNumbers, form, numbers
from toprovar_compiler.rewritten_graphs import PLAIN, RewrittenGraphs
from toprovar_compiler.shared_variants import SharedVariants

ROWS = 16
TABLE = torch.arange(ROWS * 2.0).view(ROWS, 2).square()
MOST = 6

# Of each part: whether a row or a slice is read, and of a slice how long it is.
PARTS = st.lists(st.tuples(st.sampled_from(("row", "slice")), st.integers(1, 4)), min_size=1, max_size=3)
BEGINS = st.lists(st.integers(0, MOST), min_size=3, max_size=3)


def _graph(parts: Sequence[tuple[str, int]], begins: Sequence[int]) -> fx.GraphModule:
    """Adds up parts of a table; where a slice ends is computed in the graph."""
    graph = fx.Graph()
    table = graph.placeholder("table")
    table.meta["val"] = TABLE
    total: fx.Node = graph.call_function(aten.sum.dim_IntList, (table, [0]))
    for (kind, length), begin in zip(parts, begins, strict=False):
        if kind == "row":
            read = graph.call_function(aten.select.int, (table, 0, begin))
        else:
            end = graph.call_function(operator.add, (begin, length))
            cut = graph.call_function(aten.slice.Tensor, (table, 0, begin, end))
            read = graph.call_function(aten.sum.dim_IntList, (cut, [0]))
        total = graph.call_function(aten.add.Tensor, (total, read))
    graph.output((total,))
    return fx.GraphModule(nn.Module(), graph)


def _wanted(parts: Sequence[tuple[str, int]], begins: Sequence[int]) -> Tensor:
    total = TABLE.sum(0)
    for (kind, length), begin in zip(parts, begins, strict=False):
        total = total + (TABLE[begin] if kind == "row" else TABLE[begin : begin + length].sum(0))
    return total


@given(PARTS, st.lists(BEGINS, min_size=1, max_size=6))
def test_each_graph_computes_its_own(parts: list[tuple[str, int]], scales: list[list[int]]) -> None:
    shared, made = SharedVariants(), 0
    with mock.patch.object(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward):
        for begins in scales:
            gm = _graph(parts, begins)
            bound, new = shared.bind(RewrittenGraphs(gm, gm), PLAIN, [TABLE], (), {})
            made += new
            assert torch.equal(bound.run(TABLE)[0], _wanted(parts, begins))
    assert made <= len({numbers(_graph(parts, begins).graph) for begins in scales})


@given(PARTS, st.lists(BEGINS, min_size=1, max_size=6))
def test_graphs_that_are_known_beforehand_are_compiled_once(
    parts: list[tuple[str, int]], scales: list[list[int]]
) -> None:
    shared = SharedVariants()
    known = [RewrittenGraphs(gm, gm) for gm in (_graph(parts, begins) for begins in scales)]
    shared.graphs.update(known)
    with mock.patch.object(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward):
        bound = [shared.bind(graphs, PLAIN, [TABLE], (), {}) for graphs in known]
    assert [new for _, new in bound] == [True, *[False] * (len(scales) - 1)]
    for begins, (variant, _) in zip(scales, bound, strict=True):
        assert torch.equal(variant.run(TABLE)[0], _wanted(parts, begins))


@given(PARTS, BEGINS, BEGINS)
def test_alike_or_not_is_a_matter_of_the_parts(
    parts: list[tuple[str, int]], begins: list[int], others: list[int]
) -> None:
    assert form(_graph(parts, begins)) == form(_graph(parts, others))
    assert form(_graph(parts, begins)) != form(_graph(parts[1:], begins))


@given(PARTS, BEGINS, BEGINS, st.data())
def test_any_numbers_may_become_inputs(
    parts: list[tuple[str, int]], begins: list[int], others: list[int], data: st.DataObject
) -> None:
    before = _graph(parts, begins)
    count = len(numbers(before.graph))
    lifted = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    after = rewritten(before, LiftNumbers(tuple((position,) for position in lifted)))
    own, new = numbers(before.graph), numbers(_graph(parts, others).graph)
    assert len(numbers(after.graph)) == count - len(lifted)
    assert torch.equal(after(TABLE, *(own[position] for position in lifted))[0], _wanted(parts, begins))
    if len(lifted) == count:
        assert torch.equal(after(TABLE, *(new[position] for position in lifted))[0], _wanted(parts, others))
