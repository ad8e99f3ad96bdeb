"""Keeps sums of plain numbers plain while Dynamo traces a block.

Dynamo turns every call of NumPy into one of torch, so ``np.sum([1, 4, 9])`` becomes a tensor, and what is
computed from it (where a scale's part of a table of positions begins, say) ends the graph in the middle of
the block. Nothing but the name in the block's own module leads to that call; so while a compiled block runs,
that name stands for a copy of the NumPy module whose ``sum`` adds plain integers itself, if it is traced.
Between calls it is NumPy's: Dynamo guards it, and graphs of other models of the class were made with that.
"""

from __future__ import annotations

import builtins
import collections
import sys
import threading
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy
import torch
from torch import nn
from torch._dynamo.eval_frame import skip_code

Call = Callable[..., Any]
Place = tuple[dict[str, Any], str]
"""The names of a module, and the one that stands for NumPy."""


class _PlainNumpy(types.ModuleType):
    """NumPy for what is traced; everything but ``sum`` is NumPy's own."""

    def __init__(self) -> None:
        super().__init__(numpy.__name__, numpy.__doc__)
        vars(self).update({**vars(numpy), "sum": _sum})
        self.lock = threading.Lock()
        self.users: collections.Counter[tuple[int, str]] = collections.Counter()
        """How many calls that run need it, by the names of a module and the name there."""


def _sum(numbers: Any, *arguments: Any, **named: Any) -> Any:
    plain = isinstance(numbers, (list, tuple)) and builtins.all(isinstance(n, int) for n in numbers)
    if torch.compiler.is_compiling() and plain and not arguments and not named:
        return builtins.sum(numbers)
    return numpy.sum(numbers, *arguments, **named)


# Traced, it is part of the trace. As a frame of its own it would be one that compiles, and give code between
# graphs plain numbers instead of NumPy's.
skip_code(_sum.__code__)

# One for all, because Dynamo compiles anew where a module that it has seen is another one.
_PLAIN = _PlainNumpy()


def plain_sums(blocks: Iterable[nn.Module]) -> Callable[[Call], Call]:
    """What lets the modules that define ``blocks`` and their parts see that copy during a call.

    A call stays what it is where none of these modules uses NumPy.
    """
    defined_in = {type(module).__module__ for block in blocks for module in block.modules()}
    places = [
        (vars(sys.modules[module]), name)
        for module in sorted(defined_in & set(sys.modules))
        for name, value in vars(sys.modules[module]).items()
        if value is numpy or value is _PLAIN
    ]

    def around(call: Call) -> Call:
        def run(*arguments: Any, **named: Any) -> Any:
            _replace(places)
            try:
                return call(*arguments, **named)
            finally:
                _put_back(places)

        return run if places else call

    return around


def _replace(places: Sequence[Place]) -> None:
    with _PLAIN.lock:
        for names, name in places:
            _PLAIN.users[id(names), name] += 1
            names[name] = _PLAIN


def _put_back(places: Sequence[Place]) -> None:
    """Where no other call (within this one, or of another thread) needs the copy still."""
    with _PLAIN.lock:
        for names, name in places:
            _PLAIN.users[id(names), name] -= 1
            if not _PLAIN.users[id(names), name]:
                names[name] = numpy
