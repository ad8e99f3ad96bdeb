"""One CUDA graph for all block calls of a scale, instead of one for each.

A CUDA graph for each block call costs the host more time than a GPU needs for the block, unless the model is
large. So the calls of a scale become one function once it has been seen that they follow from each other: its
graph is replayed when the scale's first block is called. The calls that come after are compared with what was
run ahead, and get its results. Whatever differs is run as it came: block graphs change nothing that they are
given, so that what was run ahead for nothing does no harm.

    1st generation   block calls run one by one, and are followed     (Trace)
    2nd              ... and the function's results compared with theirs; it warms up
    3rd              the function is recorded
    from then on     it is replayed

What is compared of a tensor is which memory it is, and its version where it has one. A model that changes, in
place and between blocks, what one block returned and the next is given, is found in the second generation.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toprovar_compiler.cuda_graphs import Recorded, record_cuda_graph
from toprovar_compiler.launches import BlockCall
from toprovar_compiler.policies.base import Step
from toprovar_compiler.scale_program import Program, Results
from toprovar_compiler.scale_trace import Trace

Record = Callable[[Recorded, Sequence[int], int, torch.device], Recorded]

_ATTEMPTS = 3  # the first generation may run other graphs than later ones, which know more sizes
_INSTEAD = "CUDA graphs are recorded for each block call, not for each scale: "
_ELSEWHERE = f"{_INSTEAD}a block is given a tensor that is not on the GPU"
_CHANGED = f"{_INSTEAD}the blocks of a scale are not called as they were the generation before"
_DIFFERS = f"{_INSTEAD}run ahead, the blocks give other results; what they return is changed between them"


@dataclass
class _Ready:
    """A scale's program, how it runs, and whether its results were compared."""

    program: Program
    run: Recorded
    confirmed: bool = False


class ScaleGraphs:
    """Launches a session's block calls scale by scale.

    Args:
        record: makes a CUDA graph of a function.
        device: the type of device that has them; on others kernels are launched one by one.
    """

    def __init__(self, record: Record = record_cuda_graph, device: str = "cuda") -> None:
        self._record, self._device = record, device
        self._ready: dict[Hashable, _Ready] = {}
        self._failures: Counter[Hashable] = Counter()
        self._given_up: dict[Hashable, str] = {}
        self._reasons: list[str] = []
        self._scale: int | None = None
        self._key: Hashable = None
        self._trace: Trace | None = None
        self._ahead: _Ahead | None = None
        self.start_generation()

    def start_generation(self) -> None:
        self._end_scale()
        self._left: list[list[weakref.ref[Tensor] | None]] = []

    def run(self, step: Step, call: BlockCall) -> Results:
        if step.scale != self._scale:
            self._end_scale()
            self._begin_scale(step, call)
        if self._ahead is not None:
            results = self._take(self._ahead, call)
        elif self._key in self._given_up:
            results = call.recorded()(*call.given)
        else:
            results = call.run(*call.given)
        if self._trace is not None:
            self._trace.add(call, results)
        # The model keeps what the next scale needs; all else would take memory for nothing.
        self._left.append([weakref.ref(v) if isinstance(v, Tensor) else None for v in results])
        return results

    def repeat(self, rows: Tensor, repeated: Tensor) -> None:
        for follower in (self._trace, self._ahead):
            if follower is not None:
                follower.repeat(rows, repeated)

    def complaints(self) -> list[str]:
        """One for each scale since the last call whose block calls had graphs of their own."""
        reasons, self._reasons = self._reasons, []
        return reasons

    def _begin_scale(self, step: Step, call: BlockCall) -> None:
        self._scale, self._key = step.scale, _key(step, call)
        devices = {value.device.type for value in call.given if isinstance(value, Tensor)}
        if self._device not in devices:
            return
        if self._key in self._given_up:
            self._reasons.append(self._given_up[self._key])
            return
        ready = self._ready.get(self._key)
        if len(devices) > 1:
            self._give_up(_ELSEWHERE)
        elif ready is None:
            self._trace = Trace(self._left, call.buffers())
        else:
            inputs = ready.program.gather(call.given, self._left)
            if inputs is None:
                self._discard(_CHANGED)
            else:
                self._ahead = _Ahead(ready, inputs)

    def _take(self, ahead: _Ahead, call: BlockCall) -> Results:
        """The results that were run ahead, if this is the call that was expected."""
        results = ahead.take(call)
        if results is None:
            self._discard(_CHANGED)
            return call.run(*call.given)
        if not ahead.ready.confirmed:
            own = call.run(*call.given)
            if not all(map(_equal, own, results)):
                self._give_up(_DIFFERS)
                return own
        return results

    def _end_scale(self) -> None:
        if self._trace is not None:
            self._make_ready(self._trace)
        if self._ahead is not None:
            if self._ahead.is_done:
                self._ahead.ready.confirmed = True
            else:
                self._discard(_CHANGED)
        self._scale = self._key = self._trace = self._ahead = None

    def _make_ready(self, trace: Trace) -> None:
        if trace.unknown is not None:
            self._give_up(f"{_INSTEAD}{trace.unknown}")
            return
        program = trace.program()
        assert trace.device is not None, "a scale has a call"
        run = self._record(program, program.fixed, program.outputs, trace.device)
        self._ready[self._key] = _Ready(program, run)

    def _discard(self, reason: str) -> None:
        """The program is of no use: the next generation is followed anew, unless that was too often."""
        self._ahead = None
        self._ready.pop(self._key, None)
        self._failures[self._key] += 1
        if self._failures[self._key] == _ATTEMPTS:
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """From now on each call of such a scale has a graph of its own, which is counted for each scale."""
        self._ahead = None
        self._ready.pop(self._key, None)
        self._given_up[self._key] = reason
        self._reasons.append(reason)


class _Ahead:
    """A scale that was run ahead: the calls that are expected, with what they return."""

    def __init__(self, ready: _Ready, inputs: list[Tensor]) -> None:
        self.ready = ready
        self._repeated: dict[int, tuple[Tensor, Tensor]] = {}
        program = ready.program
        self._values = program.values(inputs, ready.run(list(inputs)))
        self._versions = {
            slot: value._version for slot, value in enumerate(self._values) if not value.is_inference()
        }
        self._calls = deque(program.calls)

    @property
    def is_done(self) -> bool:
        return not self._calls

    def take(self, call: BlockCall) -> Results | None:
        """What ``call`` returns, if it is the one that was expected next."""
        expected = self._calls.popleft() if self._calls else None
        if expected is None or not expected.fits(call, self._values, self._versions, self._repeated):
            return None
        results = expected.returned(self._values, call.given)
        if self.is_done:
            # Nothing is compared with them any more, and the next scale may be long in coming.
            self._values, self._repeated = [], {}
        return results

    def repeat(self, rows: Tensor, repeated: Tensor) -> None:
        if not self.is_done:
            self._repeated[id(rows)] = (rows, repeated)


def _key(step: Step, call: BlockCall) -> Hashable:
    sizes = [value.shape if isinstance(value, Tensor) else value for value in call.given]
    return step.scale, call.run, tuple(sizes)


def _equal(value: Any, other: Any) -> bool:
    """The same numbers, or not a number at the same places."""
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return type(value) is type(other) and bool(value == other)
    both_nan = value.isnan() & other.isnan() if value.is_floating_point() else False
    return value.shape == other.shape and bool(((value == other) | both_nan).all())
