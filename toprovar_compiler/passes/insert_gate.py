"""Puts the entropy gate into a pruned graph."""

from __future__ import annotations

import torch
from torch import fx

from toprovar_compiler.errors import UnsupportedGraphError
from toprovar_compiler.kernels import ops  # noqa: F401  (registers toprovar::entropy_gate)
from toprovar_compiler.passes.base import source_uuid
from toprovar_compiler.passes.graph_tools import aten, outputs, placeholders
from toprovar_compiler.passes.prune_tokens import INDEX

ENTROPY = "toprovar_entropy"
KEEP = "toprovar_keep"


class InsertGate:
    """The keep index of a pruned graph is chosen inside the graph, from an entropy map.

    K stays on the host, the choice on the device: no synchronisation and no unbacked symbol.

    Before::

        keep_index: [B, K]                                     # a placeholder
        return ...

    After::

        entropy: [G, N], keep: K                               # placeholders; G samples share B = G * g rows
        keep_index = repeat(toprovar::entropy_gate(entropy, keep), [g, 1])
        return ..., keep_index[:G]
    """

    name = "insert-gate"

    def uuid(self) -> str:
        return source_uuid(self, self.rows_per_sample)

    def __init__(self, rows_per_sample: int) -> None:
        self.rows_per_sample = rows_per_sample

    def __call__(self, gm: fx.GraphModule) -> int:
        """Rewrite ``gm``; returns 1.

        Raises:
            UnsupportedGraphError: the graph was not pruned before.
        """
        graph = gm.graph
        found = [node for node in placeholders(graph) if node.target == INDEX]
        if not found:
            raise UnsupportedGraphError(f"requires a pruned graph with a placeholder {INDEX!r}, got none")
        (old,) = found
        with graph.inserting_before(old):
            entropy, keep = graph.placeholder(ENTROPY), graph.placeholder(KEEP)
        body = placeholders(graph)[-1].next
        with graph.inserting_before(body):
            chosen = graph.call_function(torch.ops.toprovar.entropy_gate.default, (entropy, keep))
            rows = graph.call_function(aten.repeat.default, (chosen, [self.rows_per_sample, 1]))
        old.replace_all_uses_with(rows)
        graph.erase_node(old)
        graph.output_node().args = ((*outputs(graph), chosen),)
        return 1
