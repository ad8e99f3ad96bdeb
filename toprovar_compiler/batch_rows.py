"""Tensors whose first dimension counts the rows of a batch, wherever a call's arguments hold them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

PLAIN = (int, float, str, bytes, type(None), nn.Module)
"""What is no tensor and holds none."""

Argument = int | str
"""Of a call: its position, or its name."""

_MOST_KNOWN = 256  # most of them are gone: of each block call one is its own


def halve(value: Any, rows: int) -> Any:
    """The first half of each tensor that has ``rows`` rows; of offsets of packed rows those of that half."""
    if isinstance(value, Tensor):
        if _has_offsets(value, rows):
            return value[: rows // 2 + 1]
        return value[: rows // 2] if has_rows(value, rows) else value
    return of_tensors(value, lambda leaf: halve(leaf, rows) if isinstance(leaf, Tensor) else leaf)


class Halves:
    """Halves of the tensors that calls are given, as long as somebody holds them.

    All blocks of a scale are given the same condition. To get the same half of it again is faster than to cut
    it anew, and lets others compare it by its identity. A half lies in the memory of its tensor.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], int]] = {}

    def of_call(
        self, arguments: tuple[Any, ...], named: dict[str, Any], rows: int, whole: Argument | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call for the first half of its rows; ``whole`` stays as it is."""
        half = [value if at == whole else self._half(value, rows) for at, value in enumerate(arguments)]
        return tuple(half), {
            name: value if name == whole else self._half(value, rows) for name, value in named.items()
        }

    def _half(self, value: Any, rows: int) -> Any:
        if not isinstance(value, Tensor):
            return halve(value, rows)
        known = self._known.get(id(value))
        if known is not None and known[0]() is value and known[2] == rows:
            found = known[1]()
            if found is not None:
                return found
        half = halve(value, rows)
        if half is not value:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[id(value)] = weakref.ref(value), weakref.ref(half), rows
        return half


def of_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """``value`` with ``change`` made to each tensor that it is or holds."""
    if isinstance(value, Tensor):
        return change(value)
    return value if isinstance(value, PLAIN) else _pytree.tree_map(change, value)


def places(value: Any, rows: int) -> Hashable:
    """Where ``value`` has tensors that :func:`halve` cuts; false where it has none."""
    if isinstance(value, Tensor):
        return _is_cut(value, rows)
    if isinstance(value, PLAIN):
        return False
    leaves = _pytree.tree_leaves_with_path(value)
    return tuple(_pytree.keystr(path) for path, leaf in leaves if _is_cut(leaf, rows))


def _is_cut(leaf: Any, rows: int) -> bool:
    return has_rows(leaf, rows) or (isinstance(leaf, Tensor) and _has_offsets(leaf, rows))


def twice(rows: Tensor) -> Tensor:
    """[B, ...] -> [2 B, ...]."""
    return torch.cat((rows, rows))


def token_counts(given: tuple[Any, ...], rows: int) -> Iterator[int]:
    """N of each tensor [rows, N, ...] of floating point that is among what is given, or within it."""
    for value in given:
        if isinstance(value, Tensor):
            if _counts_rows(value, rows):
                yield value.size(1)
        elif not isinstance(value, PLAIN):
            for leaf in _pytree.tree_leaves(value):
                if isinstance(leaf, Tensor) and _counts_rows(leaf, rows):
                    yield leaf.size(1)


def _counts_rows(value: Tensor, rows: int) -> bool:
    return value.dim() > 1 and value.size(0) == rows and value.is_floating_point()


def _has_offsets(value: Tensor, rows: int) -> bool:
    """Whether this may say where each of ``rows`` packed sequences begins, and where the last ends."""
    return value.shape == (rows + 1,) and value.dtype in (torch.int32, torch.int64)


def has_rows(leaf: Any, rows: int) -> bool:
    """Whether this is a tensor whose first dimension is ``rows``."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.size(0) == rows
