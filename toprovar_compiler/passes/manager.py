"""Runs an ordered tuple of passes: verified, timed, and dumped when asked for."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from torch import fx

from toprovar_compiler.passes.base import GraphPass
from toprovar_compiler.passes.verify import verify

DUMP_VARIABLE = "TOPROVAR_DUMP_DIR"
_dump_numbers = count()


@dataclass(frozen=True)
class PassResult:
    """What one pass did: rewrites made, wall time in seconds, ops before and after."""

    name: str
    rewrites: int
    seconds: float
    ops_before: int
    ops_after: int


class PassManager:
    """An ordered tuple of passes.

    With the environment variable ``TOPROVAR_DUMP_DIR`` set, the graph is written before the first and
    after each pass as ``NNNN-LABEL-PASS.py``.
    """

    def __init__(self, passes: tuple[GraphPass, ...], label: str) -> None:
        self.passes = passes
        self.label = label

    def __call__(self, gm: fx.GraphModule) -> tuple[PassResult, ...]:
        """Rewrite ``gm`` in place.

        Raises:
            UnsupportedGraphError: a pass cannot rewrite this graph.
            GraphVerificationError: a pass broke an invariant.
        """
        self._dump(gm, "captured")
        return tuple(self._run(gm))

    def uuid(self) -> str:
        """Changes when any pass, its settings or their order changes."""
        return hashlib.sha256("/".join(p.uuid() for p in self.passes).encode()).hexdigest()

    def _run(self, gm: fx.GraphModule) -> Iterator[PassResult]:
        for graph_pass in self.passes:
            before, start = len(gm.graph.nodes), time.perf_counter()
            rewrites = graph_pass(gm)
            verify(gm, graph_pass.name)
            gm.recompile()
            seconds = time.perf_counter() - start
            self._dump(gm, graph_pass.name)
            yield PassResult(graph_pass.name, rewrites, seconds, before, len(gm.graph.nodes))

    def _dump(self, gm: fx.GraphModule, stage: str) -> None:
        folder = os.environ.get(DUMP_VARIABLE)
        if not folder:
            return
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = gm.print_readable(print_output=False)
        (path / f"{next(_dump_numbers):04d}-{self.label}-{stage}.py").write_text(text)
