"""The gate chooses inside the graph what the pruned graph was given from outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.passes.graphs import count, rewritten, run
from tests.passes.toy_block import B, Block, H, N, assert_equal, make_inputs, on_kept, typed
from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.kernels.gate import entropy_gate_reference
from toprovar_compiler.passes.fuse_entropy import FuseEntropy
from toprovar_compiler.passes.graph_tools import clone, outputs, placeholders
from toprovar_compiler.passes.insert_gate import ENTROPY, KEEP, InsertGate
from toprovar_compiler.passes.prune_tokens import BASE, INDEX, PruneTokens

GATE = torch.ops.toprovar.entropy_gate
KEPT = 3


def _map(rows: int) -> Tensor:
    """[rows, N] with ties."""
    return torch.tensor([[0.5, 0.1, 0.5, 0.9, 0.1, 0.3], [0.2, 0.2, 0.8, 0.1, 0.8, 0.2]])[:rows]


def test_the_index_input_gives_way_to_a_map_and_a_number() -> None:
    inputs = make_inputs()
    before = rewritten(typed(Block(), inputs), PruneTokens())
    after = rewritten(before, InsertGate(1))
    assert (count(before, GATE), count(after, GATE)) == (0, 1)
    earlier, later = ([n.target for n in placeholders(gm.graph)] for gm in (before, after))
    assert earlier[len(inputs) :] == [INDEX, BASE]
    assert later == [*earlier[: len(inputs)], ENTROPY, KEEP, BASE]
    assert len(outputs(after.graph)) == len(outputs(before.graph)) + 1
    assert sum(after_nodes.target == INDEX for after_nodes in after.graph.nodes) == 0


@pytest.mark.parametrize("keep", [1, KEPT, N])
@pytest.mark.parametrize("rows_per_sample", [1, 2])
def test_the_lowest_entropies_are_kept(rows_per_sample: int, keep: int) -> None:
    inputs = make_inputs()
    gm = rewritten(typed(Block(), inputs), PruneTokens(), InsertGate(rows_per_sample))
    base = torch.zeros_like(inputs["x"])
    entropy = _map(B // rows_per_sample)
    *results, index = run(gm, *inputs.values(), entropy, keep, base)
    chosen = entropy_gate_reference(entropy, keep)
    assert torch.equal(index, chosen)
    assert_equal(results, on_kept(Block(), inputs, chosen.repeat(rows_per_sample, 1), base))


def test_the_index_comes_behind_the_entropy_maps() -> None:
    inputs = make_inputs()
    gm = rewritten(typed(Block(), inputs), PruneTokens(), FuseEntropy(), InsertGate(1))
    *_, entropy, index = run(gm, *inputs.values(), _map(B), KEPT, torch.zeros_like(inputs["x"]))
    assert (entropy.shape, index.shape) == ((B, H, KEPT), (B, KEPT))
    assert (entropy.dtype, index.dtype) == (torch.float64, torch.int64)


def test_a_graph_that_was_not_pruned_is_refused() -> None:
    gm = typed(Block(), make_inputs())
    before = gm.code
    with pytest.raises(UnsupportedGraphError, match=f"requires a pruned graph .*'{INDEX}', got none"):
        InsertGate(1)(gm)
    gm.recompile()
    assert gm.code == before


def test_a_gate_goes_in_once() -> None:
    gm = rewritten(typed(Block(), make_inputs()), PruneTokens())
    gated = clone(gm)
    assert InsertGate(1)(gated) == 1
    with pytest.raises(UnsupportedGraphError, match="requires a pruned graph"):
        InsertGate(1)(gated)
