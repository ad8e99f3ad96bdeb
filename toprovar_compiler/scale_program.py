"""The block calls of one scale as one function, and where each of their arguments comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toprovar_compiler.launches import BlockCall
from toprovar_compiler.variants import Compiled

Results = Sequence[Any]

# How Dynamo marks the tensors of a model that stay where they are: buffers, and what was marked by hand.
_STATIC = "_dynamo_static_input_type"


class Given(NamedTuple):
    """An argument of the scale's first block call."""

    position: int


class Result(NamedTuple):
    """A result of an earlier block call of the scale."""

    call: int
    position: int


class Earlier(NamedTuple):
    """A result of the previous scale, of which the first ``rows`` rows are taken."""

    call: int
    position: int
    rows: int


class Held(NamedTuple):
    """A weight, a number, an empty tensor: the same object each time."""

    value: Any


Source = Given | Result | Earlier | Held


class Expected(NamedTuple):
    """A block call that is known before it comes, and what it returns."""

    run: Compiled
    given: list[Any]
    results: Results


class Program:
    """The block calls of a scale, one after another: a function from tensors to all tensors they return.

    Its inputs are what the first call is given, then results of the previous scale, then weights.
    """

    def __init__(self, runs: list[Compiled], sources: list[list[Source]], patterns: list[list[Any]]) -> None:
        self._runs, self._sources, self._patterns = runs, sources, patterns
        used = [source for of_call in sources for source in of_call]
        outer = dict.fromkeys(source for source in used if isinstance(source, (Given, Earlier)))
        # Tensors cannot be told apart by value: weights are found by identity.
        weights = {id(source.value): source for source in used if isinstance(source, Held)}
        held = [source for source in weights.values() if isinstance(source.value, Tensor)]
        self._inputs: list[Source] = [*outer, *held]
        self.fixed = tuple(range(len(outer), len(self._inputs)))
        """Positions of the inputs that lie where they lay the last time."""
        self.outputs = sum(value is _TENSOR for pattern in patterns for value in pattern)

    def gather(self, given: Sequence[Any], earlier: Sequence[Results]) -> list[Tensor] | None:
        """The inputs; None where the previous scale has not left what is needed."""
        found = []
        for source in self._inputs:
            value = _outer(source, given, earlier)
            if not isinstance(value, Tensor):
                return None
            found.append(value)
        return found

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """All tensors among the results of all calls; ``inputs`` is emptied, as Inductor's graphs do."""
        known = {_key(source): value for source, value in zip(self._inputs, inputs, strict=True)}
        inputs.clear()
        done: list[Results] = []
        for run, of_call in zip(self._runs, self._sources, strict=True):
            done.append(list(run(*[_resolve(source, known, done) for source in of_call])))
        return [value for results in done for value in results if isinstance(value, Tensor)]

    def split(self, tensors: Sequence[Tensor]) -> list[Results]:
        """What the calls return, of all their tensors."""
        left = iter(tensors)
        return [[next(left) if value is _TENSOR else value for value in p] for p in self._patterns]

    def expected(self, inputs: Sequence[Tensor], results: list[Results]) -> list[Expected]:
        """What each call is to be, and what it then returns."""
        known = {_key(source): value for source, value in zip(self._inputs, inputs, strict=True)}
        return [
            Expected(run, [_resolve(source, known, results) for source in of_call], returned)
            for run, of_call, returned in zip(self._runs, self._sources, results, strict=True)
        ]


class Trace:
    """Follows the block calls of a scale as they come, and finds where their arguments come from.

    Args:
        earlier: the results of the previous scale's calls.
    """

    def __init__(self, earlier: Sequence[Results]) -> None:
        self.results: list[Results] = []
        self.unknown: str | None = None
        """Why these calls are no function of what is known before, if so."""
        self._earlier = earlier
        self._given: Sequence[Any] = ()
        self._runs: list[Compiled] = []
        self._sources: list[list[Source]] = []
        self.repeated: list[tuple[Tensor, Tensor]] = []
        """Pairs of a result and of its copy twice over, see :func:`is_same`."""

    @property
    def device(self) -> torch.device:
        """Where the first call's tensors are."""
        return next(value.device for value in self._given if isinstance(value, Tensor))

    def add(self, call: BlockCall, results: Results) -> None:
        if not self._runs:
            self._given = call.given
        sources = [self._source(argument) for argument in call.given]
        known = [source for source in sources if source is not None]
        if len(known) < len(sources):
            self.unknown = "a block is given a tensor that is made between blocks"
        self._runs.append(call.run)
        self._sources.append(known)
        self.results.append(results)

    def program(self) -> Program:
        patterns = [[_TENSOR if isinstance(v, Tensor) else v for v in results] for results in self.results]
        return Program(self._runs, self._sources, patterns)

    def _source(self, argument: Any) -> Source | None:
        if not isinstance(argument, Tensor) or is_fixed(argument) or not argument.numel():
            return Held(argument)
        for call in reversed(range(len(self.results))):
            for position, value in enumerate(self.results[call]):
                if is_same(argument, value, self.repeated):
                    return Result(call, position)
        for position, value in enumerate(self._given):
            if is_same(argument, value, ()):
                return Given(position)
        return self._among_earlier(argument)

    def _among_earlier(self, argument: Tensor) -> Earlier | None:
        rows = len(argument) if argument.dim() else 0
        for call, results in enumerate(self._earlier):
            for position, value in enumerate(results):
                if _has_rows(value, rows) and is_same(argument, _first_rows(value, rows), ()):
                    return Earlier(call, position, rows)
        return None


def is_fixed(tensor: Tensor) -> bool:
    """Whether a tensor is the model's own and stays where it is."""
    return isinstance(tensor, nn.Parameter) or hasattr(tensor, _STATIC)


def is_same(argument: Any, wanted: Any, repeated: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether both are the same memory seen in the same way, or the same number.

    ``wanted`` must be held meanwhile: memory that is given back may be another tensor's next.

    Args:
        repeated: pairs of a tensor and of its copy twice over; the copy's first half stands for the tensor.
    """
    if argument is wanted:
        return True
    if not isinstance(argument, Tensor) or not isinstance(wanted, Tensor):
        return (
            not isinstance(argument, Tensor) and not isinstance(wanted, Tensor) and bool(argument == wanted)
        )
    if argument.shape != wanted.shape or argument.dtype != wanted.dtype:
        return False
    if argument.data_ptr() == wanted.data_ptr():
        return argument.stride() == wanted.stride()
    return any(rows is wanted and argument.data_ptr() == copy.data_ptr() for rows, copy in repeated)


_TENSOR = object()


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) >= rows > 0


def _first_rows(value: Tensor, rows: int) -> Tensor:
    return value if len(value) == rows else value[:rows]


def _key(source: Source) -> Any:
    return id(source.value) if isinstance(source, Held) else source


def _outer(source: Source, given: Sequence[Any], earlier: Sequence[Results]) -> Any:
    if isinstance(source, Given):
        return given[source.position] if source.position < len(given) else None
    if isinstance(source, Earlier):
        found: Any = earlier[source.call][source.position] if source.call < len(earlier) else None
        return _first_rows(found, source.rows) if _has_rows(found, source.rows) else None
    assert isinstance(source, Held), "results of the same scale are no inputs"
    return source.value


def _resolve(source: Source, known: dict[Any, Any], done: Sequence[Results]) -> Any:
    if isinstance(source, Result):
        return done[source.call][source.position]
    if isinstance(source, Held) and not isinstance(source.value, Tensor):
        return source.value
    return known[_key(source)]
