"""What a block's modules hold of their own that may count the rows of a batch: caches, mostly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils import _pytree

from toprovar_compiler.batch_rows import PLAIN, halve, has_rows

# What every module holds of its own is neither cache nor argument.
_OWN = frozenset(vars(nn.Module()))
_GONE = object()

Attribute = tuple[str, nn.Module, str, Any]
"""Path, module, name, value."""


class Holder(NamedTuple):
    """A module of a block, how many attributes it has, and its own ones with the paths to them."""

    module: nn.Module
    attributes: int
    own: tuple[tuple[str, str], ...]


def holders(block: nn.Module) -> list[Holder]:
    """The modules that may hold caches: torch's own keep none, and they are most."""
    return [
        Holder(
            module,
            len(vars(module)),
            tuple((name, f"{path}.{name}") for name in vars(module) if name not in _OWN),
        )
        for path, module in block.named_modules()
        if not type(module).__module__.startswith("torch.nn.modules.")
    ]


def held(of_block: Sequence[Holder]) -> list[Attribute] | None:
    """What may be or hold tensors; None where a module has other attributes than it had."""
    found = []
    for holder in of_block:
        values = vars(holder.module)
        # What every module has is never deleted: as many, and its own among them, are the same names.
        if len(values) != holder.attributes:
            return None
        for name, path in holder.own:
            value = values.get(name, _GONE)
            if value is _GONE:
                return None
            if not isinstance(value, PLAIN):
                found.append((path, holder.module, name, value))
    return found


def cached(attributes: Sequence[Attribute], rows: int) -> list[str]:
    """Where modules hold tensors of all rows or, from an earlier halved call, of half of them."""
    return [path for path, _, _, value in attributes if _has_rows_or_half(value, rows)]


def _has_rows_or_half(value: Any, rows: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and value.size(0) in (rows, rows // 2)
    return any(has_rows(leaf, rows) or has_rows(leaf, rows // 2) for leaf in _pytree.tree_leaves(value))


def halve_caches(attributes: Sequence[Attribute], rows: int) -> list[tuple[nn.Module, str]]:
    """Cut what has ``rows`` rows; returns where that was."""
    cut = []
    for _, module, name, value in attributes:
        if isinstance(value, (Tensor, tuple)) and any(has_rows(x, rows) for x in _pytree.tree_leaves(value)):
            setattr(module, name, halve(value, rows))
            cut.append((module, name))
    return cut


def put_back(attributes: Sequence[Attribute]) -> None:
    for _, module, name, value in attributes:
        setattr(module, name, value)
