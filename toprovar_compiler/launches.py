"""How a compiled block call gets onto its device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from toprovar_compiler.policies.base import Step
from toprovar_compiler.variants import Compiled


class BlockCall(NamedTuple):
    """A variant of a block's graph with what it is called with.

    Attributes:
        run: the variant, which launches its kernels one by one.
        given: its arguments.
        recorded: gives the same variant as Inductor records it, a CUDA graph for each call; compiled when
            first asked for.
        buffers: gives the buffers of all blocks.
    """

    run: Compiled
    given: Sequence[Any]
    recorded: Callable[[], Compiled]
    buffers: Callable[[], Iterable[Tensor]]


class Launcher(Protocol):
    """Runs the block calls of a session."""

    def start_generation(self) -> None: ...

    def run(self, step: Step, call: BlockCall) -> Sequence[Any]:
        """What ``call.run(*call.given)`` returns."""

    def repeat(self, rows: Tensor, repeated: Tensor) -> None:
        """A block's result ``rows`` goes on as ``repeated``, [rows, rows]; the next gets its first half."""

    def complaints(self) -> list[str]:
        """Reasons, since the last call, why launching takes longer than it should."""


class EachCall:
    """Kernels are launched one by one."""

    def start_generation(self) -> None:
        """Nothing is remembered between generations."""

    def run(self, step: Step, call: BlockCall) -> Sequence[Any]:
        return call.run(*call.given)

    def repeat(self, rows: Tensor, repeated: Tensor) -> None:
        """Nothing is followed."""

    def complaints(self) -> list[str]:
        return []
