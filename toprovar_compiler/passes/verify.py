"""Invariants that hold between passes; a breach is a defect of this package, never of the model."""

from __future__ import annotations

from torch import fx

from toprovar_compiler.errors import GraphVerificationError
from toprovar_compiler.passes.graph_tools import placeholders


def verify(gm: fx.GraphModule, after: str) -> None:
    """Check ``gm`` after the pass named ``after``.

    The graph lints, its placeholders come first, names are unique, and no node reads a value that
    was erased.

    Raises:
        GraphVerificationError: an invariant does not hold; the message names the pass and the node.
    """
    try:
        gm.graph.lint()
    except Exception as error:
        raise GraphVerificationError(f"pass {after!r} left a graph that does not lint: {error}") from error
    body_started = False
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            if body_started:
                raise GraphVerificationError(f"pass {after!r} left placeholder {node.name!r} behind the body")
        else:
            body_started = True
    targets = [node.target for node in placeholders(gm.graph)]
    if len(set(targets)) != len(targets):
        raise GraphVerificationError(f"pass {after!r} left two placeholders of the same name: {targets}")
