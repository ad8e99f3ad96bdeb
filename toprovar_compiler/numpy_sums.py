"""Keeps sums of plain numbers plain while Dynamo traces a block.

Dynamo turns every call of NumPy into one of torch, so ``np.sum([1, 4, 9])`` becomes a tensor, and what is
computed from it (where a scale's part of a table of positions begins, say) ends the graph in the middle of
the block. Nothing but the name in the block's own module leads to that call; so while blocks run compiled,
that name stands for a copy of the NumPy module whose ``sum`` adds plain integers itself, if it is traced.
"""

from __future__ import annotations

import builtins
import collections
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy
import torch
from torch import nn
from torch._dynamo.eval_frame import skip_code


class _PlainNumpy(types.ModuleType):
    """NumPy for what is traced; everything but ``sum`` is NumPy's own."""

    def __init__(self) -> None:
        super().__init__(numpy.__name__, numpy.__doc__)
        vars(self).update({**vars(numpy), "sum": _sum})
        self.users: collections.Counter[tuple[str, str]] = collections.Counter()
        """How many compilations need it, by module and name there."""


def _sum(numbers: Any, *arguments: Any, **named: Any) -> Any:
    plain = isinstance(numbers, (list, tuple)) and builtins.all(isinstance(n, int) for n in numbers)
    if torch.compiler.is_compiling() and plain and not arguments and not named:
        return builtins.sum(numbers)
    return numpy.sum(numbers, *arguments, **named)


# Traced, it is part of the trace. As a frame of its own it would be one that always compiles, and give plain
# numbers where code between graphs (another model of the same class, compiled otherwise) gets NumPy's.
skip_code(_sum.__code__)

# One for all, because Dynamo compiles anew where a module that it has seen is another one.
_PLAIN = _PlainNumpy()


def keep_sums_plain(blocks: Iterable[nn.Module]) -> Callable[[], None]:
    """Let the modules that define ``blocks`` and their parts see that copy; returns what undoes it."""
    defined_in = {type(module).__module__ for block in blocks for module in block.modules()}
    places = [
        (module, name)
        for module in sorted(defined_in & set(sys.modules))
        for name, value in vars(sys.modules[module]).items()
        if value is numpy or value is _PLAIN
    ]
    for module, name in places:
        vars(sys.modules[module])[name] = _PLAIN
    _PLAIN.users.update(places)
    # Names of their own: a model that stays compiled is undone while Python ends, when the module's are gone.
    plain, true, modules = _PLAIN, numpy, sys.modules

    def undo() -> None:
        plain.users.subtract(places)
        for module, name in places:
            names = modules[module].__dict__ if module in modules else {}
            if not plain.users[module, name] and names.get(name) is plain:
                names[name] = true

    return undo
