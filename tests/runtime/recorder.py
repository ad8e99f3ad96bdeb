"""What CUDA graphs do to a function's results, without CUDA."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toprovar_compiler.cuda_graphs import Recorded

# References to a tensor that nobody but a list holds: the list's, and that of the count itself.
_HELD_BY_NOBODY = 2


@dataclass
class Node:
    """A function recorded after certain others: its results lie where they lay when it was recorded.

    Attributes:
        alive: of the nodes that ran before, which results somebody held when this one ran, run by run.
    """

    results: list[Tensor] = field(default_factory=list)
    fresh: list[weakref.ref[Tensor]] = field(default_factory=list)
    alive: list[list[list[bool]]] = field(default_factory=list)

    def held(self) -> list[bool]:
        """Which results somebody holds."""
        if self.fresh:
            return [result() is not None for result in self.fresh]
        return [sys.getrefcount(self.results[i]) > _HELD_BY_NOBODY for i in range(len(self.results))]


class Recorder:
    """Records functions as :mod:`toprovar_compiler.cuda_graphs` does.

    As with Inductor a function's first run is a warm-up; it is recorded when it comes after certain others
    for the first time, and what it then returns are nobody else's tensors. From the next run on it keeps
    them. What was alive when it was recorded must be so whenever it runs again after the same others.
    """

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, ...], Node] = {}
        self.functions = self.runs = 0
        self._path: tuple[int, ...] = ()

    def __call__(
        self, function: Recorded, fixed: Sequence[int], outputs: int, device: torch.device
    ) -> Recorded:
        self.functions += 1
        number, warm = self.functions, False

        def run(inputs: list[Tensor]) -> list[Tensor]:
            nonlocal warm
            self.runs += 1
            assert all(tensor.device == device for tensor in inputs)
            before = [self.nodes[self._path[:end]] for end in range(1, 1 + len(self._path))]
            alive = [node.held() for node in before]
            results = function(inputs)
            assert not inputs
            assert len(results) == outputs
            if not warm:
                warm = True
                return list(results)
            self._path += (number,)
            known = self._path in self.nodes
            node = self.nodes.setdefault(self._path, Node())
            node.alive.append(alive)
            if not known:
                node.fresh = [weakref.ref(result) for result in results]
                node.results = [result.detach() for result in results]
                return list(results)
            node.fresh = []
            for place, result in zip(node.results, results, strict=True):
                place.copy_(result)
            return list(node.results)

        return run

    def new_step(self) -> None:
        """What ``torch.compiler.cudagraph_mark_step_begin`` says."""
        self._path = ()
