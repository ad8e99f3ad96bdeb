"""Ends a model's own loop over its scales early, without touching the model's source.

VAR-style models generate in a loop over the schedule that they state, ``for side in self.patch_nums``. While
a policy that may exit is in charge, that attribute holds an equal sequence whose iteration ends where the
policy says so.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from toprovar_compiler.owner import Owner
from toprovar_compiler.schedule import schedule_attribute


class _ExitingTuple(tuple[int, ...]):
    """All but iteration is the tuple's own. A copy, of the model too, is a plain tuple."""

    owner: Owner

    def __iter__(self) -> Iterator[int]:
        return _until_exit(super().__iter__(), self.owner)

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(self),)


class _ExitingList(list[int]):
    """The same for a list."""

    owner: Owner

    def __iter__(self) -> Iterator[int]:
        return _until_exit(super().__iter__(), self.owner)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def _until_exit(sides: Iterator[int], owner: Owner) -> Iterator[int]:
    """Only an iteration that drives the generation may end early: one between whose last two items the
    session saw the scale of the first. Others (``sum(n * n for n in self.patch_nums)``) see all items."""
    drives = False
    for scale, side in enumerate(sides):
        session = owner.session
        if drives and session is not None and session.exits_before(scale):
            return
        before = None if session is None else session.position()
        yield side
        session = owner.session
        after = None if session is None else session.position()
        drives = after is not None and after != before and after[1] == scale


def let_exit(model: nn.Module, owner: Owner) -> Callable[[], None] | None:
    """Put the exiting sequence in the place of the model's stated schedule.

    Returns:
        What undoes it; None where the model states no schedule, or one that cannot be replaced.
    """
    name = schedule_attribute(model)
    sides = None if name is None else getattr(model, name)
    if name is None or not isinstance(sides, (tuple, list)):
        return None
    exiting = (_ExitingTuple if isinstance(sides, tuple) else _ExitingList)(sides)
    exiting.owner = owner
    own = name in vars(model)
    try:
        setattr(model, name, exiting)
    except AttributeError:  # a property
        return None
    held = weakref.ref(model)

    def undo() -> None:
        there = held()
        if there is None or vars(there).get(name) is not exiting:
            return
        if own:
            setattr(there, name, sides)
        else:
            delattr(there, name)

    return undo
