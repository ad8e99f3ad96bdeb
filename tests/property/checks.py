"""What every rewrite of a random program must satisfy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tests.passes.graphs import capture_program, rewritten, run
from tests.property import reference
from tests.property.programs import Shape, program
from tests.property.strategies import Case
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.passes.drop_assertions import DropAssertions
from toprovar_compiler.passes.fuse_entropy import FuseEntropy
from toprovar_compiler.passes.match_attention import MatchAttention
from toprovar_compiler.passes.prune_tokens import PrunedKeys, PruneTokens
from toprovar_compiler.passes.token_axis import find_token_stream

# Both sides compute in float64 and differ in the order of their sums only.
TOLERANCE = 1e-9


@dataclass
class Prepared:
    """A captured and typed program with its inputs."""

    case: Case
    inputs: dict[str, Tensor]
    captured: fx.GraphModule
    typed: fx.GraphModule

    @property
    def values(self) -> list[Tensor]:
        return list(self.inputs.values())


def prepare(case: Case, seed: int) -> Prepared:
    """Capture and type a program, as the backend does.

    Raises:
        UnsupportedGraphError: the program is refused; the message is the reason.
    """
    inputs = reference.make_inputs(case.shape, case.blocks, seed)
    axes = reference.dynamic_axes(inputs, batch=case.dynamic_batch, text=case.dynamic_text)
    captured = capture_program(
        lambda given: program(case.blocks, case.shape, given), inputs, axes, duck=case.duck
    )
    typed = rewritten(captured, DropAssertions(), MatchAttention())
    find_token_stream(typed.graph)
    return Prepared(case, inputs, captured, typed)


def prepare_or_refuse(case: Case, seed: int) -> Prepared | str:
    """The prepared program, or why it is refused."""
    try:
        return prepare(case, seed)
    except UnsupportedGraphError as error:
        return str(error)


def draw_index(shape: Shape, keep: int, seed: int) -> Tensor:
    """[B, K]: for each sample other tokens, in no order."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(shape.tokens, generator=generator)[:keep] for _ in range(shape.batch)]
    return torch.stack(rows)


def check_dense(prepared: Prepared) -> None:
    """The captured graph returns what the program does."""
    expected = reference.dense(prepared.case.blocks, prepared.case.shape, prepared.inputs)
    assert_equal(run(prepared.captured, *prepared.values), expected.outputs)


def check_entropy(prepared: Prepared) -> None:
    """With entropy outputs: the same results, and the oracle's entropies."""
    expected = reference.dense(prepared.case.blocks, prepared.case.shape, prepared.inputs)
    assert len(expected.entropies) == len(prepared.case.blocks)
    graph = rewritten(prepared.typed, FuseEntropy())
    assert_equal(run(graph, *prepared.values), expected.outputs + expected.entropies)


def check_pruned(prepared: Prepared, keys: PrunedKeys, keep: int, seed: int) -> None:
    """Pruned to ``keep`` tokens: what the untouched program gives on gathered tokens, sample by sample."""
    index = draw_index(prepared.case.shape, keep, seed)
    base = torch.randn(prepared.inputs["x"].shape, generator=torch.Generator().manual_seed(seed)).double()
    expected = reference.pruned(
        prepared.case.blocks, prepared.case.shape, prepared.inputs, index, base, keys == "computed"
    )
    graph = rewritten(prepared.typed, PruneTokens(keys), FuseEntropy())
    assert_equal(run(graph, *prepared.values, index, base), expected.outputs + expected.entropies)


def check_keep_all(prepared: Prepared, keys: PrunedKeys) -> None:
    """All tokens kept, in their order: nothing differs from the dense program."""
    shape = prepared.case.shape
    index = torch.arange(shape.tokens).repeat(shape.batch, 1)
    expected = reference.dense(prepared.case.blocks, shape, prepared.inputs)
    graph = rewritten(prepared.typed, PruneTokens(keys), FuseEntropy())
    results = run(graph, *prepared.values, index, torch.full_like(prepared.inputs["x"], torch.nan))
    assert_equal(results, expected.outputs + expected.entropies)


def assert_equal(actual: list[object], expected: list[object]) -> None:
    assert len(actual) == len(expected)
    for one, two in zip(actual, expected, strict=True):
        if isinstance(two, Tensor):
            torch.testing.assert_close(one, two, rtol=TOLERANCE, atol=TOLERANCE)
        else:
            assert one == two
