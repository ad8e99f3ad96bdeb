"""Which models are compiled, and whose counts ``summary()`` adds up.

The one place of process-wide state: ``torch.compile`` hands back no object that could own it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from toprovar_compiler.counters import Counters
from toprovar_compiler.session import Session

if TYPE_CHECKING:
    from toprovar_compiler.compiled_model import CompiledModel


class Registry:
    """Compiled models (held weakly), and the counters of every session since the last reset."""

    def __init__(self) -> None:
        self.models: MutableMapping[nn.Module, CompiledModel] = WeakKeyDictionary()
        self._sessions: WeakKeyDictionary[Session, None] = WeakKeyDictionary()
        self._counters: list[Counters] = []

    def add(self, session: Session) -> None:
        self._sessions[session] = None
        self._counters.append(session.counters)

    def counters(self) -> tuple[Counters, ...]:
        """Of all sessions, finished and running, that counted anything since the last reset."""
        for session in list(self._sessions):
            session.finish()
        return tuple(self._counters)

    def reset(self) -> None:
        """Set every count to zero; compiled models stay compiled."""
        for counters in self._counters:
            counters.clear()
        self._counters = [session.counters for session in self._sessions]


REGISTRY = Registry()
