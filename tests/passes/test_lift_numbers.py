"""Graphs that differ in a few numbers are told apart from all others, and become one graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from tests.passes.graphs import capture_program, rewritten, run
from toprovar_compiler.passes.graph_tools import aten, calls, clone, placeholders, symbols_of, value_of
from toprovar_compiler.passes.lift_numbers import NUMBER, LiftNumbers, form, numbers

INPUTS = {"x": torch.arange(6.0).view(1, 3, 2), "table": torch.arange(40.0).view(20, 2)}
TOKENS = {"x": (1,)}
Inputs = dict[str, Tensor]
Program = Callable[[Inputs], Tensor]


def _part_from(begin: int, scale: float = 1.0) -> Program:
    """Adds a part of the table that begins at ``begin`` and is as long as x."""

    def program(given: Inputs) -> Tensor:
        x = given["x"]
        return x * scale + given["table"][begin : begin + x.shape[1]]

    return program


def _graph(
    program: Program, inputs: Inputs = INPUTS, dynamic: dict[str, tuple[int, ...]] = TOKENS
) -> fx.GraphModule:
    return capture_program(program, inputs, dynamic)


def test_a_slice_and_the_sum_that_ends_it() -> None:
    assert numbers(_graph(_part_from(4)).graph) == (4, 4)


def test_graphs_of_two_scales_are_alike() -> None:
    one, other = _graph(_part_from(4)), _graph(_part_from(9))
    assert form(one) == form(other)
    assert hash(form(one)) == hash(form(other))


def test_names_of_symbols_do_not_matter() -> None:
    def program(given: Inputs) -> Tensor:
        return _part_from(4)({"x": given["y"], "table": given["table"]})

    other = capture_program(program, {"y": INPUTS["x"], "table": INPUTS["table"]}, {"y": (1,)})
    names = [{str(s) for node in placeholders(gm.graph) for s in symbols_of(value_of(node))} for gm in (PART, other)]
    assert names[0] != names[1]
    assert form(PART) == form(other)


def test_the_axis_of_a_slice_is_no_number() -> None:
    other = clone(PART)
    (cut,) = calls(other.graph, aten.slice.Tensor)
    cut.update_arg(1, 1)
    assert form(PART) != form(other)


PART = _graph(_part_from(4))
UNLIKE = {
    "another factor": _graph(_part_from(4, scale=2.0)),
    "another operator": _graph(lambda given: given["x"] - given["table"][4 : 4 + given["x"].shape[1]]),
    "a constant number of tokens": _graph(_part_from(4), dynamic={}),
    "another constant size": _graph(_part_from(4), {**INPUTS, "table": torch.zeros(21, 2)}),
    "other strides": _graph(_part_from(4), {**INPUTS, "table": torch.zeros(2, 20).t()}),
    "another dtype": _graph(_part_from(4), {**INPUTS, "table": INPUTS["table"].double()}),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_differs_otherwise_is_not_alike(name: str) -> None:
    assert form(PART) != form(UNLIKE[name])


def test_a_tensor_that_a_graph_holds_is_compared_as_an_object() -> None:
    def holding(tensor: Tensor) -> fx.GraphModule:
        graph = fx.Graph()
        graph.output(graph.get_attr("held.tensor"))
        holder = torch.nn.Module()
        holder.register_buffer("tensor", tensor)
        return fx.GraphModule({"held.tensor": tensor, "held": holder}, graph)

    held = torch.ones(2)
    assert form(holding(held)) == form(holding(held))
    assert form(holding(held)) != form(holding(torch.ones(2)))


def test_one_graph_computes_what_each_does() -> None:
    before = _graph(_part_from(4))
    after = rewritten(before, LiftNumbers(((0, 1),)))
    assert [node.target for node in placeholders(after.graph)][-1] == f"{NUMBER}_0"
    assert numbers(after.graph) == ()
    for begin in (0, 1, 4, 9):
        (expected,) = run(_graph(_part_from(begin)), *INPUTS.values())
        (actual,) = run(after, *INPUTS.values(), begin)
        assert torch.equal(actual, expected)


def test_groups_become_one_input_each_in_their_order() -> None:
    def program(given: Inputs) -> Tensor:
        return given["x"] + given["table"][2] + given["table"][5]

    before = _graph(program)
    assert numbers(before.graph) == (2, 5)
    after = rewritten(before, LiftNumbers(((1,), (0,))))
    (actual,) = run(after, *INPUTS.values(), 7, 3)
    assert torch.equal(actual, INPUTS["x"] + INPUTS["table"][3] + INPUTS["table"][7])


def test_no_groups_change_nothing() -> None:
    before = _graph(_part_from(4))
    assert rewritten(before, LiftNumbers(())).code == before.code


def test_the_cache_key_changes_with_the_groups() -> None:
    assert LiftNumbers(((0, 1),)).uuid() != LiftNumbers(((0,), (1,))).uuid()
