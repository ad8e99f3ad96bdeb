"""From a Dynamo graph to functional ATen: nothing is lost on the way, and the run time leaves it as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from tests.passes.graphs import capture_calls, capture_program, run
from tests.passes.toy_block import DYNAMIC, Block, Inputs, N, assert_equal, captured, make_inputs
from toprovar_compiler import variants
from toprovar_compiler.capture import capture, needs_gradients
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.graph_runtime import GraphRuntime
from toprovar_compiler.options import Options
from toprovar_compiler.passes.graph_tools import placeholders
from toprovar_compiler.session import Session
from toprovar_compiler.shared_variants import SharedVariants


def _in_place_bias(x: Tensor, given: Inputs) -> Tensor:
    y = F.linear(x, given["w"])
    y += given["b"]
    return y.mul_(0.5)


def _in_place_view(x: Tensor, given: Inputs) -> Tensor:
    y = x.clone()
    y[..., :2] += given["b"][:2]
    y[:, :, 1].zero_()
    return y


IN_PLACE = {"bias": _in_place_bias, "view": _in_place_view}


@pytest.mark.parametrize("step", IN_PLACE.values(), ids=IN_PLACE)
def test_what_was_done_in_place_is_there(step: object) -> None:
    block, inputs = Block(before=step), make_inputs()  # type: ignore[arg-type]
    gm = captured(block, inputs)
    assert_equal(run(gm, *inputs.values()), block(inputs))
    in_place = [n.target for n in gm.graph.nodes if n.op == "call_function" and _mutates(n)]
    assert in_place == []


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def test_placeholders_keep_their_order_and_symbols() -> None:
    inputs = make_inputs()
    gm = captured(Block(), inputs)
    values = [node.meta["val"] for node in placeholders(gm.graph)]
    assert [value.dim() for value in values] == [tensor.dim() for tensor in inputs.values()]
    symbolic = [sum(isinstance(size, torch.SymInt) for size in value.shape) for value in values]
    assert symbolic == [1, 1, 1, *[0] * (len(inputs) - 3)]


def test_a_graph_that_changes_its_inputs_is_refused() -> None:
    def grows(given: Inputs) -> Tensor:
        given["x"] += 1.0
        return given["x"] * 2

    with pytest.raises(UnsupportedGraphError, match="mutates its inputs"):
        capture_program(grows, {"x": make_inputs()["x"]}, DYNAMIC)


def test_a_graph_that_cannot_be_exported_says_why() -> None:
    def depends(given: Inputs) -> Tensor:
        return given["x"] * (2 if given["x"].sum() > 0 else 3)

    with pytest.raises(UnsupportedGraphError, match=r"not exportable: \w+: \S"):
        capture_program(depends, {"x": make_inputs()["x"]}, DYNAMIC)


def test_capture_needs_dynamos_context() -> None:
    gm = fx.symbolic_trace(lambda x: x * 2)
    with pytest.raises(UnsupportedGraphError, match="requires Dynamo's tracing context, got none"):
        capture(gm)


def test_gradients_are_needed_where_they_are_recorded() -> None:
    graph = fx.Graph()
    graph.placeholder("x").meta["example_value"] = torch.zeros(2, requires_grad=True)
    graph.output(())
    gm = fx.GraphModule(torch.nn.Module(), graph)
    assert needs_gradients(gm)
    with torch.no_grad():
        assert not needs_gradients(gm)


def test_with_nothing_to_prune_the_captured_graph_runs_as_it_was_captured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the run time compiles is that graph, its code the same to the letter, and nothing else."""
    block = Block()

    def function(*values: Tensor) -> object:
        return block(dict(zip(make_inputs(), values, strict=True)))

    inputs = make_inputs()
    shorter = {**inputs, "x": inputs["x"][:, : N - 1], "past_k": inputs["past_k"][:, :, :2]}
    shorter["past_v"] = inputs["past_v"][:, :, :2]
    seen = capture_calls(function, tuple(shorter.values()), tuple(inputs.values()))
    gm, arguments = seen.graphs[-1], seen.arguments[-1]
    before = gm.code
    compiled: list[str] = []
    calls: list[tuple[object, ...]] = []

    def keep(graph: fx.GraphModule, inputs: object, config_patches: object) -> Callable[..., object]:
        graph.recompile()
        compiled.append(graph.code)

        def call(*given: object) -> object:
            calls.append(given)
            return graph(*given)

        return call

    monkeypatch.setattr(variants, "compile_fx", keep)
    session = Session("toy", Options(policy="dense"), schedule=None)
    runtime = GraphRuntime(gm, _Owner(session))  # type: ignore[arg-type]
    for _ in range(2):
        assert_equal(runtime(*arguments), run(gm, *arguments))
    gm.recompile()
    assert gm.code == before
    assert compiled == [before]
    assert [tuple(map(id, given)) for given in calls] == [tuple(map(id, arguments))] * 2
    assert session.counters.graphs == 1


class _Owner:
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, session: Session) -> None:
        self.session, self.variants = session, SharedVariants()

    def current_session(self) -> Session:
        return self.session

    def buffers(self) -> Iterable[Tensor]:
        return ()
