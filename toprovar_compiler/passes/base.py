"""What a pass is."""

from __future__ import annotations

import hashlib
import inspect
from typing import Protocol, runtime_checkable

from torch import fx


@runtime_checkable
class GraphPass(Protocol):
    """One rewrite of a captured graph.

    A pass changes ``gm`` in place and returns how many places it rewrote. It raises
    :class:`~toprovar_compiler.errors.UnsupportedGraphError`, before it changes anything, when the
    graph cannot be rewritten.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, gm: fx.GraphModule) -> int: ...

    def uuid(self) -> str: ...


def source_uuid(instance: object, *state: object) -> str:
    """A cache key: changes with the source of the pass and with the state that steers it."""
    digest = hashlib.sha256(inspect.getsource(type(instance)).encode())
    digest.update(repr(state).encode())
    return digest.hexdigest()
