"""Graphs that a pass may not leave behind."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from tests.passes.toy_block import Block, captured, make_inputs
from toprovar_compiler.errors import GraphVerificationError
from toprovar_compiler.passes.graph_tools import placeholders
from toprovar_compiler.passes.verify import verify


def _graph() -> fx.GraphModule:
    """y = relu(x), z = y + x."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.relu.default, (x,))
    z = graph.call_function(torch.ops.aten.add.Tensor, (y, x))
    graph.output((z,))
    return fx.GraphModule(torch.nn.Module(), graph)


def test_sound_graphs_pass() -> None:
    verify(_graph(), "pass")
    verify(captured(Block(), make_inputs()), "pass")


def test_a_value_read_before_it_is_made() -> None:
    gm = _graph()
    _, y, z, _ = gm.graph.nodes
    z.append(y)
    with pytest.raises(GraphVerificationError, match=r"'breaks-order' left a graph that does not lint.*relu"):
        verify(gm, "breaks-order")


def test_a_value_of_another_graph() -> None:
    gm, other = _graph(), _graph()
    _, _, z, _ = gm.graph.nodes
    z.args = (next(iter(other.graph.nodes)), z.args[1])
    with pytest.raises(GraphVerificationError, match="'borrows' left a graph that does not lint"):
        verify(gm, "borrows")


def test_two_values_of_one_name() -> None:
    gm = _graph()
    _, y, z, _ = gm.graph.nodes
    z.name = y.name
    with pytest.raises(GraphVerificationError, match="'renames' left a graph that does not lint"):
        verify(gm, "renames")


def test_an_input_behind_the_body() -> None:
    gm = _graph()
    with gm.graph.inserting_before(gm.graph.output_node()):
        gm.graph.placeholder("late")
    with pytest.raises(GraphVerificationError, match="'adds-late' left placeholder 'late' behind the body"):
        verify(gm, "adds-late")


def test_two_inputs_of_one_name() -> None:
    gm = _graph()
    (x,) = placeholders(gm.graph)
    with gm.graph.inserting_after(x):
        gm.graph.placeholder("x")
    with pytest.raises(GraphVerificationError, match=r"'doubles' left two placeholders of the same name"):
        verify(gm, "doubles")
