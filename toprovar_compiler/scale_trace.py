"""Follows the block calls of a scale, to find where their arguments come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toprovar_compiler.footprint import Footprint
from toprovar_compiler.launches import BlockCall
from toprovar_compiler.scale_program import (
    Earlier,
    Given,
    Held,
    Left,
    Made,
    Passed,
    Program,
    Result,
    Results,
    Returned,
    Source,
    is_same,
)
from toprovar_compiler.variants import Compiled


class Trace:
    """Follows the block calls of a scale as they come, and finds where their arguments come from.

    No tensor is kept alive by it but the weights: what a scale leaves may take much of a device's memory.

    Args:
        earlier: the results of the calls of all scales before.
        buffers: of the blocks.
    """

    def __init__(self, earlier: Left, buffers: Iterable[Tensor]) -> None:
        self.unknown: str | None = None
        """Why these calls are no function of what is known before, if so."""
        self.device: torch.device | None = None
        """Where the first call's tensors are."""
        self._earlier = [[Footprint.of(left and left()) for left in results] for results in earlier]
        # Of a tensor that is held the identity stays its own.
        self._buffers = {id(buffer) for buffer in buffers}
        self._given: list[Footprint | None] = []
        self._results: list[list[Footprint | None]] = []
        self._repeated: list[tuple[Footprint | None, int]] = []
        self._runs: list[Compiled] = []
        self._sources: list[list[Source]] = []
        self._returned: list[list[Returned]] = []

    def add(self, call: BlockCall, results: Results) -> None:
        if self.device is None:
            self._given = [Footprint.of(argument) for argument in call.given]
            self.device = next(value.device for value in call.given if isinstance(value, Tensor))
        sources = [self._source(argument) for argument in call.given]
        known = [source for source in sources if source is not None]
        if len(known) < len(sources):
            self.unknown = "a block is given a tensor that is made between blocks"
        self._runs.append(call.run)
        self._sources.append(known)
        returned = [self._kind(value, call.given) for value in results]
        self._returned.append(returned)
        # What is passed on has a source already.
        self._results.append(
            [
                Footprint.of(value) if isinstance(kind, Made) else None
                for value, kind in zip(results, returned, strict=True)
            ]
        )

    def repeat(self, rows: Tensor, repeated: Tensor) -> None:
        """See :meth:`toprovar_compiler.launches.Launcher.repeat`."""
        self._repeated.append((Footprint.of(repeated), rows.data_ptr()))

    def program(self) -> Program:
        return Program.of(self._runs, self._sources, self._returned)

    def _kind(self, result: Any, given: Sequence[Any]) -> Returned:
        """An input that is a graph's output too would leave the model with memory of the graph's."""
        if not isinstance(result, Tensor):
            return Held(result)
        storage = result.untyped_storage().data_ptr()
        shared = [
            (position, argument)
            for position, argument in enumerate(given)
            if isinstance(argument, Tensor) and storage and argument.untyped_storage().data_ptr() == storage
        ]
        for position, argument in shared:
            if is_same(result, argument):
                return Passed(position)
        if shared:
            self.unknown = "a block returns a view of what it is given"
        return Made()

    def _source(self, argument: Any) -> Source | None:
        if not isinstance(argument, Tensor) or isinstance(argument, nn.Parameter) or not argument.numel():
            return Held(argument)
        for call, position, found in _newest_first(self._results):
            if found.is_of(argument) or self._repeats(argument, found):
                return Result(call, position)
        earlier = self._earlier_source(argument)
        # A model may keep results in its buffers.
        if earlier is None and id(argument) in self._buffers:
            return Held(argument)
        for place, given in enumerate(self._given):
            if given is not None and given.is_of(argument):
                return Given(place)
        return earlier

    def _earlier_source(self, argument: Tensor) -> Earlier | None:
        for call, position, found in _newest_first(self._earlier):
            if found.is_of(argument, first_rows=True):
                return Earlier(call, position, len(argument) if argument.dim() else 1)
        return None

    def _repeats(self, argument: Tensor, found: Footprint) -> bool:
        return argument.shape == found.shape and any(
            copy is not None and copy.is_of(argument, first_rows=True)
            for copy, rows in self._repeated
            if rows == found.data_ptr
        )


def _newest_first(calls: Sequence[Sequence[Footprint | None]]) -> Iterator[tuple[int, int, Footprint]]:
    for call in reversed(range(len(calls))):
        for position, found in enumerate(calls[call]):
            if found is not None:
                yield call, position, found
