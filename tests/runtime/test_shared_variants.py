"""Graphs that differ in a few numbers share a compiled variant, and none gets another's numbers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from tests.passes.graphs import capture_program
from tests.toy_generators import TextVAR
from toprovar_compiler import variants
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.lift_numbers import numbers
from toprovar_compiler.rewritten_graphs import PLAIN, Recipe, RewrittenGraphs
from toprovar_compiler.shared_variants import SharedVariants

INPUTS = {"x": torch.arange(6.0).view(1, 3, 2), "table": torch.arange(80.0).view(40, 2)}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The numbers that are constants of each graph that was compiled."""
    seen: list[tuple[int, ...]] = []

    def keep(gm: fx.GraphModule, inputs: object, config_patches: object) -> object:
        seen.append(numbers(gm.graph))
        return gm.forward

    monkeypatch.setattr(variants, "compile_fx", keep)
    return seen


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def _graph(begin: int, row: int = 5) -> fx.GraphModule:
    def program(given: dict[str, Tensor]) -> Tensor:
        x, table = given["x"], given["table"]
        return x + table[begin : begin + x.shape[1]] + table[row]

    return capture_program(program, INPUTS, {"x": (1,)})


def _other_graph() -> fx.GraphModule:
    return capture_program(lambda given: given["x"] + given["table"][5], INPUTS, {"x": (1,)})


def _compiles(shared: SharedVariants, begin: int, row: int = 5) -> bool:
    """Whether a variant has to be compiled for that graph; whichever it gets computes what the graph does."""
    gm, given = _graph(begin, row), list(INPUTS.values())
    bound, made = shared.bind(RewrittenGraphs(gm, gm), PLAIN, given, (INPUTS["x"].shape[1],), {})
    with torch.no_grad():
        (expected,), (actual,) = gm(*given), bound.run(*given)
    assert torch.equal(actual, expected)
    return made


def test_the_first_is_compiled_as_it_is_and_the_second_for_all(compiled: list[tuple[int, ...]]) -> None:
    shared = SharedVariants()
    assert [_compiles(shared, begin) for begin in (4, 9, 16, 0, 1, 4)] == [True, True, *[False] * 4]
    assert compiled == [(4, 4, 5), (5,)]


def test_what_was_traced_before_is_compiled_for_at_once(compiled: list[tuple[int, ...]]) -> None:
    shared = SharedVariants()
    # The last one is no graph of the kind: one row is read, and no slice.
    traced = [RewrittenGraphs(gm, gm) for gm in (_graph(4), _graph(9), _graph(16), _other_graph())]
    shared.graphs.update(traced)
    given, size = list(INPUTS.values()), (INPUTS["x"].shape[1],)
    assert [shared.bind(graphs, PLAIN, given, size, {})[1] for graphs in traced[:3]] == [True, False, False]
    assert not _compiles(shared, 25)
    assert compiled == [(5,)]


def test_a_graph_that_is_gone_is_not_compiled_for(compiled: list[tuple[int, ...]]) -> None:
    shared = SharedVariants()
    gone = RewrittenGraphs(_graph(9), _graph(9))
    shared.graphs.add(gone)
    del gone
    gc.collect()
    assert _compiles(shared, 4)
    assert compiled == [(4, 4, 5)]


def test_a_graph_that_cannot_be_rewritten_so_is_none_to_compile_for() -> None:
    """Of two graphs that differ in a number one may be prunable alone."""
    gm, pruned = _graph(4), Recipe("absent", maps=False)
    graphs = RewrittenGraphs(gm, gm)
    assert graphs.described(pruned) is None
    with pytest.raises(UnsupportedGraphError):
        graphs.make(pruned)


def test_another_number_differs_later(compiled: list[tuple[int, ...]]) -> None:
    shared = SharedVariants()
    assert [_compiles(shared, 4), _compiles(shared, 9), _compiles(shared, 16, row=6)] == [True] * 3
    assert not _compiles(shared, 25, row=7)
    assert compiled == [(4, 4, 5), (5,), ()]


def test_numbers_that_agreed_are_told_apart_when_they_no_longer_do(compiled: list[tuple[int, ...]]) -> None:
    shared = SharedVariants()
    assert [_compiles(shared, 4, row=4), _compiles(shared, 9, row=9)] == [True, True]
    assert not _compiles(shared, 16, row=16)
    assert _compiles(shared, 16, row=3)
    assert not _compiles(shared, 1, row=0)
    assert compiled == [(4, 4, 4), (), ()]


@pytest.mark.usefixtures("precision")
def test_another_precision_is_another_variant(compiled: list[tuple[int, ...]]) -> None:
    """Dynamo makes another graph of it, because Inductor may choose other kernels."""
    shared = SharedVariants()
    torch.set_float32_matmul_precision("highest")
    assert _compiles(shared, 4)
    torch.set_float32_matmul_precision("medium")
    assert _compiles(shared, 4)
    assert not _compiles(shared, 4)
    assert len(compiled) == 2


def test_other_settings_are_another_variant(compiled: list[tuple[int, ...]]) -> None:
    shared, gm = SharedVariants(), _graph(4)
    given = (RewrittenGraphs(gm, gm), PLAIN, list(INPUTS.values()), (3,))
    assert [shared.bind(*given, {"max_autotune": tuned})[1] for tuned in (True, False, True)] == [
        True,
        True,
        False,
    ]


def test_inductor_compiles_the_shared_one() -> None:
    shared = SharedVariants()
    assert [_compiles(shared, begin) for begin in (4, 9, 16, 0)] == [True, True, False, False]


def test_a_reset_of_dynamo_forgets_them(compiled: list[tuple[int, ...]]) -> None:
    toy = TextVAR()
    fast: Any = torch.compile(toy, backend="toprovar", options={"policy": "dense"})
    words = torch.zeros(1, 3, dtype=torch.int64)
    counts = []
    for _ in range(3):
        torch._dynamo.reset()
        compiled.clear()
        for _ in range(2):
            fast.paint(words)
        counts.append(len(compiled))
    assert counts == counts[:1] * 3
    assert counts[0] > 0
