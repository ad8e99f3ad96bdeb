"""Removes checks that tracing left behind."""

from __future__ import annotations

from torch import fx

from toprovar_compiler.passes.base import source_uuid
from toprovar_compiler.passes.graph_tools import aten, calls


class DropAssertions:
    """Tracing a cast records that its input had a certain dtype; a rewritten graph states that anew.

    Before::

        _assert_tensor_metadata(x, dtype=float32)
        y = linear(x, w)

    After::

        y = linear(x, w)
    """

    name = "drop-assertions"

    def uuid(self) -> str:
        return source_uuid(self)

    def __call__(self, gm: fx.GraphModule) -> int:
        """Rewrite ``gm``; returns the number of checks removed. Raises nothing."""
        found = calls(gm.graph, aten._assert_tensor_metadata.default)
        for node in found:
            gm.graph.erase_node(node)
        return len(found)
