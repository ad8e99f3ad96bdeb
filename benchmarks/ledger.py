"""Where the time of a generation goes: each part of toprovar's run time, without the parts that it calls."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch.profiler import record_function

from toprovar_compiler import backend, residual_codes, shared_variants
from toprovar_compiler.graph_runtime import GraphRuntime
from toprovar_compiler.policies.calibrated_entropy import CalibratedEntropy
from toprovar_compiler.policies.toprovar import ToprovarPolicy

GRAPHS = "compiled graphs"
"""Blocks, dense or pruned, with their attention's entropy, gathers and scatters: not bookkeeping."""
RANKING, GATE, BOOKKEEPING, SUMMARY = "entropy source", "gate", "bookkeeping", "summary"
PARTS = (RANKING, GATE, BOOKKEEPING, SUMMARY)
PREFIX = "toprovar: "
"""Of the parts' names in a profile."""

Call = Callable[..., Any]


class Ledger:
    """Seconds of each part; a range inside another one counts for the inner part alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.annotate = False
        """Whether ranges are also shown to the profiler."""
        self._open: list[str] = []
        self._since = 0.0

    def timed(self, part: str, call: Call) -> Call:
        """``call``, whose time counts for ``part``."""

        def run(*arguments: Any, **named: Any) -> Any:
            self._turn()
            self._open.append(part)
            try:
                if not self.annotate:
                    return call(*arguments, **named)
                with record_function(PREFIX + part):
                    return call(*arguments, **named)
            finally:
                self._turn()
                self._open.pop()

        return run

    def _turn(self) -> None:
        """Charge the time since the last turn to the innermost range."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextlib.contextmanager
def kept(ledger: Ledger) -> Iterator[None]:
    """Inside, all that toprovar runs beside the compiled graphs is entered; compile inside as well."""
    make_dense, make_variant = backend.compile_here, shared_variants.compile_variant
    make_hook = residual_codes._zero_pruned

    def dense(*arguments: Any) -> Any:
        return ledger.timed(GRAPHS, make_dense(*arguments))

    def variant(*arguments: Any) -> Any:
        made = make_variant(*arguments)
        made.run = ledger.timed(GRAPHS, made.run)
        return made

    def hook(*arguments: Any) -> Call:
        return ledger.timed(BOOKKEEPING, make_hook(*arguments))

    patches = [
        (backend, "compile_here", dense),
        (GraphRuntime, "__call__", ledger.timed(BOOKKEEPING, GraphRuntime.__call__)),
        (shared_variants, "compile_variant", variant),
        (residual_codes, "_zero_pruned", hook),
        (ToprovarPolicy, "_prune_scale", ledger.timed(GATE, ToprovarPolicy._prune_scale)),
    ]
    patches += [
        (CalibratedEntropy, name, ledger.timed(RANKING, getattr(CalibratedEntropy, name)))
        for name in ("start_generation", "scores", "observe", "complaints")
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in patches:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield
