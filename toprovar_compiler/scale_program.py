"""The block calls of one scale as one function, and where each of their arguments comes from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, repeat
from operator import is_, itemgetter
from typing import Any, NamedTuple

from torch import Tensor

from toprovar_compiler.launches import BlockCall
from toprovar_compiler.variants import Compiled

Results = Sequence[Any]
Left = Sequence[Sequence[weakref.ref[Tensor] | None]]
"""The tensors that a generation's calls returned before a scale, as far as they are alive. To look at one is
to hold it for that time, and Inductor's CUDA graphs count who holds what they returned: look only at what is
needed."""
Repeated = Mapping[int, tuple[Tensor, Tensor]]
"""By the identity of a result: itself and its copy twice over, whose first half stands for it."""

_NONE: Repeated = {}

Versions = Mapping[int, int]
"""Of the values in these slots; tensors made in inference mode have none."""


class Made(NamedTuple):
    """A tensor among the results of a call."""


class Passed(NamedTuple):
    """A result that is an argument of the call."""

    position: int


class Given(NamedTuple):
    """An argument of the scale's first block call."""

    position: int


class Result(NamedTuple):
    """A result of an earlier block call of the scale."""

    call: int
    position: int


class Earlier(NamedTuple):
    """A result of the generation's calls before the scale, of which the first ``rows`` rows are taken."""

    call: int
    position: int
    rows: int


class Held(NamedTuple):
    """A weight, a number, an empty tensor: the same each time."""

    value: Any


Source = Given | Result | Earlier | Held
Returned = Made | Passed | Held


class _Slot(NamedTuple):
    number: int


class _Call:
    """A block call.

    Args:
        sources: where its arguments come from.
        slots: where the program's values are.
        results: where each is, or what.
    """

    def __init__(
        self,
        run: Compiled,
        sources: Sequence[Source],
        slots: Mapping[Source, int],
        results: Sequence[_Slot | Passed | Held],
    ) -> None:
        self.run, self.count, self._results = run, len(sources), results
        held = {place: source.value for place, source in enumerate(sources) if isinstance(source, Held)}
        self.weights = {place: value for place, value in held.items() if isinstance(value, Tensor)}
        self._numbers = {place: value for place, value in held.items() if place not in self.weights}
        self._moving = {place: slots[source] for place, source in enumerate(sources) if place not in held}
        # All of them are compared at every call.
        self._wanted_numbers = tuple(self._numbers.values())
        self._weights_of, self._numbers_of = _picker(self.weights), _picker(self._numbers)
        self._moving_of, self._wanted_of = _picker(self._moving), _picker(self._moving.values())

    def arguments(self, values: Sequence[Tensor]) -> list[Any]:
        given: list[Any] = [None] * self.count
        for place, slot in self._moving.items():
            given[place] = values[slot]
        for place, value in chain(self.weights.items(), self._numbers.items()):
            given[place] = value
        return given

    def made(self, results: Results) -> list[Tensor]:
        """The tensors that its own run made."""
        return [value for value, kind in zip(results, self._results, strict=True) if isinstance(kind, _Slot)]

    def returned(self, values: Sequence[Tensor], given: Sequence[Any]) -> list[Any]:
        """What it returns; what it passes on is the caller's."""
        return [
            values[result.number]
            if isinstance(result, _Slot)
            else given[result.position]
            if isinstance(result, Passed)
            else result.value
            for result in self._results
        ]

    def fits(self, call: BlockCall, values: Sequence[Tensor], versions: Versions, repeated: Repeated) -> bool:
        """Whether ``call`` is this one, with ``values`` unchanged since they had these ``versions``."""
        given = call.given
        if call.run is not self.run or len(given) != self.count:
            return False
        if self._numbers_of(given) != self._wanted_numbers:
            return False
        # Nearly always the very objects.
        found, weights = self._weights_of(given), self.weights.values()
        if not all(map(is_, found, weights)) and not all(map(is_same, found, weights)):
            return False
        found, wanted = self._moving_of(given), self._wanted_of(values)
        if not all(map(is_, found, wanted)) and not all(map(is_same, found, wanted, repeat(repeated))):
            return False
        return not versions or all(
            values[slot]._version == versions[slot] for slot in self._moving.values() if slot in versions
        )


def _picker(places: Iterable[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Takes what is at these places."""
    wanted = tuple(places)
    if len(wanted) > 1:
        return itemgetter(*wanted)
    return lambda values: tuple([values[place] for place in wanted])


class Program:
    """The block calls of a scale, one after another: a function from tensors to all tensors they make.

    Its values are what it is given of the first call and of the scales before, then all results.
    """

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.outputs = 0
        """How many tensors all calls make."""
        self._outer: list[Given | Earlier] = []
        self._weights: dict[int, Tensor] = {}

    @classmethod
    def of(
        cls, runs: Sequence[Compiled], sources: Sequence[list[Source]], returned: Sequence[list[Returned]]
    ) -> Program:
        """The calls of ``runs``, whose arguments come from ``sources``.

        Args:
            returned: of each call what its results are.
        """
        made = cls()
        used = chain.from_iterable(sources)
        made._outer = list(dict.fromkeys(source for source in used if isinstance(source, (Given, Earlier))))
        slots: dict[Source, int] = {source: slot for slot, source in enumerate(made._outer)}
        for at, (run, of_call, kinds) in enumerate(zip(runs, sources, returned, strict=True)):
            results: list[_Slot | Passed | Held] = []
            for position, kind in enumerate(kinds):
                if isinstance(kind, Made):
                    slot = slots[Result(at, position)] = len(made._outer) + made.outputs
                    made.outputs += 1
                results.append(_Slot(slot) if isinstance(kind, Made) else kind)
            call = _Call(run, of_call, slots, results)
            # By identity: tensors cannot be told apart by value.
            made._weights.update((id(weight), weight) for weight in call.weights.values())
            made.calls.append(call)
        return made

    @property
    def fixed(self) -> tuple[int, ...]:
        """Positions of the inputs that lie where they lay the last time: the weights, which come last."""
        return tuple(range(len(self._outer), len(self._outer) + len(self._weights)))

    def gather(self, given: Sequence[Any], earlier: Left) -> list[Tensor] | None:
        """The inputs; None where the scales before have not left what is needed."""
        found = [_outer(source, given, earlier) for source in self._outer]
        if not all(isinstance(value, Tensor) for value in found):
            return None
        return [*found, *self._weights.values()]

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """All tensors that all calls make; ``inputs`` is emptied, as Inductor's graphs do."""
        values = inputs[: len(self._outer)]
        inputs.clear()
        for call in self.calls:
            values.extend(call.made(call.run(*call.arguments(values))))
        return values[len(self._outer) :]

    def values(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
        """What the slots of the calls number."""
        return [*inputs[: len(self._outer)], *outputs]


def is_same(argument: Any, wanted: Any, repeated: Repeated = _NONE) -> bool:
    """Whether both are the same memory seen in the same way, or the same number.

    ``wanted`` must be held meanwhile: memory that is given back may be another tensor's next.

    Args:
        repeated: the copies whose first half stands for a tensor.
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
    copy = repeated.get(id(wanted))
    return copy is not None and argument.data_ptr() == copy[1].data_ptr()


def _outer(source: Given | Earlier, given: Sequence[Any], earlier: Left) -> Any:
    if isinstance(source, Given):
        return given[source.position]
    left = earlier[source.call][source.position] if source.call < len(earlier) else None
    found = None if left is None else left()
    # len() of a tensor is slow, and a scale may ask for a hundred of them.
    rows = found.shape[0] if found is not None and found.dim() else 0
    if found is None or rows < source.rows:
        return None
    return found if rows == source.rows else found[: source.rows]
