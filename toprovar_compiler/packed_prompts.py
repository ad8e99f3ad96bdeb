"""Gives blocks packed prompts of a few lengths, so that a prompt of another length needs no other graphs.

A packed prompt is what attention over sequences of different lengths takes: the words of all samples one
behind another, where each sample's begin and the last one's end, and how many the longest has.

    before   (words [T, C], offsets [samples + 1], longest)
    after    (words [64 or 128 or 256 ..., C], offsets, 512)

Nobody reads what lies behind the last offset, and the longest is an upper bound. Whether that holds for a
block is seen before its first call of a kind: it must give the same results with both.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from toprovar_compiler.same_results import are_alike, coarseness
from toprovar_compiler.session import Session

_FEWEST_WORDS = 64
_LONGEST = 512
"""What text encoders cut their prompts at, mostly. One number for nearly all prompts, because Dynamo traces
anew where it differs."""
_REFUSED = "a prompt of another length needs other graphs: with words behind those of the prompts a block "

Call = Callable[..., Any]
_Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments, and those by name."""


class Owner(Protocol):
    """Has the session that is in charge, if any."""

    session: Session | None


class _Padded(NamedTuple):
    """Words that were padded: those that came, and their version where they have one."""

    came: weakref.ref[Tensor]
    version: int | None
    words: Tensor


class PackedPrompts:
    """Pads the packed prompts that one model's blocks are given.

    Blocks that are given none are called as they are.
    """

    def __init__(self, blocks: Sequence[nn.Module], owner: Owner) -> None:
        self._first, self.owner = blocks[0], owner
        self._padded: dict[int, _Padded] = {}
        self._refusals: dict[Hashable, str | None] = {}

    def padded(self, block: nn.Module, call: Call) -> Call:
        """``call``, a compiled call of ``block``, that is given padded prompts."""

        def run(*arguments: Any, **named: Any) -> Any:
            places = [at for at, value in enumerate(arguments) if _is_packed(value)]
            names = [name for name, value in named.items() if _is_packed(value)]
            if not places and not names:
                return call(*arguments, **named)
            if block is self._first:
                # All blocks of a scale are given the same words, to compare by their identity. What a model
                # does to them between its scales is not always seen.
                self._padded.clear()
            kinds = [_kind(at, arguments[at]) for at in places] + [_kind(at, named[at]) for at in names]
            if not self._fits(block, tuple(kinds), arguments, named):
                return call(*arguments, **named)
            given = list(arguments)
            for at in places:
                given[at] = self._pad(arguments[at])
            for name in names:
                named[name] = self._pad(named[name])
            return call(*given, **named)

        return run

    def _pad(self, value: Any) -> Any:
        words, offsets, longest = value
        version = None if words.is_inference() else words._version
        known = self._padded.get(id(words))
        if known is None or known.came() is not words or known.version != version:
            padded = _pad(words, 0.0, _room(len(words)))
            known = self._padded[id(words)] = _Padded(weakref.ref(words), version, padded)
            # Else Dynamo would trace all blocks anew for the second length.
            torch._dynamo.maybe_mark_dynamic(padded, 0)
        return type(value)((known.words, offsets, _most(longest)))

    def _fits(self, block: nn.Module, kinds: Hashable, arguments: Any, named: Any) -> bool:
        """Whether the block leaves unread what lies behind the words; asked once for each kind of call."""
        kind = type(block), kinds
        if kind not in self._refusals:
            refusal = self._refusals[kind] = _refusal(block, (arguments, named))
            if refusal is not None and self.owner.session is not None:
                self.owner.session.note(f"{_REFUSED}{refusal}")
        return self._refusals[kind] is None


def _is_packed(value: Any) -> bool:
    """Whether this looks like (words [T, C], offsets [samples + 1], longest)."""
    if type(value) not in (tuple, list) or len(value) != 3:
        return False
    words, offsets, longest = value
    return (
        isinstance(words, Tensor)
        and isinstance(offsets, Tensor)
        and type(longest) is int
        and words.dim() == 2
        and words.is_floating_point()
        and offsets.dim() == 1
        and offsets.dtype == torch.int32
        and 0 < longest <= len(words)
    )


def _kind(place: int | str, value: Any) -> Hashable:
    return place, value[0].shape[1], value[0].dtype


def _pad(words: Tensor, behind: Tensor | float, room: int) -> Tensor:
    padded = words.new_empty((room, words.shape[1]))
    padded[: len(words)] = words
    padded[len(words) :] = behind
    return padded


def _room(words: int) -> int:
    return max(_FEWEST_WORDS, _round_up(words))


def _most(longest: int) -> int:
    return max(_LONGEST, _round_up(longest))


def _round_up(number: int) -> int:
    """To a power of two."""
    return 1 << (number - 1).bit_length()


def _refusal(block: nn.Module, given: _Given) -> str | None:
    """What a block does wrong with more words behind those that it is given; None if it does not read them.

    Copies of it are run, uncompiled, with copies of what it is given: caches stay what they are.
    """
    results: list[list[Any]] = []
    for change in (_copy, _disturb):
        try:
            arguments, named = _pytree.tree_map(change, given, is_leaf=_is_packed)
            results.append(_pytree.tree_leaves(_twin(block).forward(*arguments, **named)))
        except Exception as error:  # a model's own code may raise anything, and so may copying it
            return f"raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    coarse = coarseness(block)
    alike = len(results[0]) == len(results[1]) and all(
        are_alike(one, other, coarse) for one, other in zip(*results, strict=True)
    )
    return None if alike else "gives other results"


def _copy(leaf: Any) -> Any:
    return _pytree.tree_map_only(Tensor, Tensor.clone, leaf)


def _disturb(leaf: Any) -> Any:
    """A copy with words behind those of a packed prompt that a sum, mean or maximum of all would show."""
    if not _is_packed(leaf):
        return _copy(leaf)
    words, offsets, longest = leaf
    more = _pad(words, 1.0 + 2.0 * words.abs().max(), _room(len(words) + 1))
    return type(leaf)((more, offsets.clone(), _most(longest)))


def _twin(block: nn.Module) -> nn.Module:
    """A copy, but for its parameters, which are the same ones."""
    return copy.deepcopy(block, {id(parameter): parameter for parameter in block.parameters()})
