"""Which models are compiled, and whose counts ``summary()`` adds up.

The one place of process-wide state: ``torch.compile`` hands back no object that could own it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from toprovar_compiler.counters import Counters
from toprovar_compiler.session import Session

if TYPE_CHECKING:
    from toprovar_compiler.compiled_model import BlockCompiler, CompiledModel
    from toprovar_compiler.options import Mode

    _Kind = tuple[str | None, Mode]


class Registry:
    """Models by weak reference: a model that nobody else holds is forgotten; its counts are not."""

    def __init__(self) -> None:
        self.attached: WeakKeyDictionary[nn.Module, CompiledModel] = WeakKeyDictionary()
        self._compilers: WeakKeyDictionary[nn.Module, dict[_Kind, BlockCompiler]] = WeakKeyDictionary()
        self._compilations: WeakKeyDictionary[nn.Module, WeakSet[CompiledModel]] = WeakKeyDictionary()
        self._sessions: WeakSet[Session] = WeakSet()
        self._counters: list[Counters] = []

    def compiler(self, model: nn.Module, path: str | None, mode: Mode) -> BlockCompiler:
        """Compiles the blocks at ``path`` in this mode; all other options share its graphs."""
        from toprovar_compiler.compiled_model import BlockCompiler

        of_model = self._compilers.setdefault(model, {})
        if (path, mode) not in of_model:
            of_model[path, mode] = BlockCompiler(model, path, mode)
        return of_model[path, mode]

    def add_model(self, model: nn.Module, compilation: CompiledModel) -> None:
        self._compilations.setdefault(model, WeakSet()).add(compilation)
        self.add(compilation.session)

    def compilations(self, model: nn.Module) -> list[CompiledModel]:
        """All live compilations of a model, the one that ran last at the end."""
        found = self._compilations.get(model, ())
        return sorted(found, key=lambda compilation: compilation.session.started)

    def add(self, session: Session) -> None:
        self._sessions.add(session)
        self._counters.append(session.counters)

    def sessions(self) -> list[Session]:
        """All that are still in use."""
        return list(self._sessions)

    def counters(self) -> tuple[Counters, ...]:
        """Of all sessions since the last reset, those of forgotten models too."""
        return tuple(self._counters)

    def reset(self) -> None:
        """Set every count to zero; compiled models stay compiled."""
        for counters in self._counters:
            counters.clear()
        self._counters = [session.counters for session in self._sessions]
        for session in self._sessions:
            session.drop_complaints()


REGISTRY = Registry()
