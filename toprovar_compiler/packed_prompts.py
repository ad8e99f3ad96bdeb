"""Gives blocks packed prompts of a few lengths, so that a prompt of another length needs no other graphs.

A packed prompt is what attention over sequences of different lengths takes: the words of all samples one
behind another, where each sample's begin and the last one's end, and how many the longest has.

    before   (words [T, C], offsets [samples + 1], longest)
    after    (words [64 or 128 or 256 ..., C], offsets, 512)

Nobody reads what lies behind the last offset, and the longest is an upper bound. That a block keeps to this
is seen before its first call of a kind (:mod:`toprovar_compiler.padding_check`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toprovar_compiler.footprint import Footprint
from toprovar_compiler.generation import Generation
from toprovar_compiler.owner import Owner
from toprovar_compiler.packed_words import CONTAINERS, is_packed, of_padded, pad, room_for
from toprovar_compiler.padding_check import why_not_padded

_REFUSED = "a prompt of another length needs other graphs: with words behind those of the prompts a block "
_PLAIN = (int, float, str, type(None))
_MOST_KINDS = 64  # a number that is a scale has fewer values

Call = Callable[..., Any]


class _Padded(NamedTuple):
    """Words that were padded: which memory they are, and of which version where they have one."""

    came: Footprint
    version: int | None
    words: Tensor

    def is_of(self, words: Tensor) -> bool:
        return self.version == _version(words) and self.came.is_of(words)


class PackedPrompts:
    """Pads the packed prompts that one model's blocks are given.

    Blocks that are given none are called as they are.
    """

    def __init__(self, blocks: Sequence[nn.Module], owner: Owner) -> None:
        self._blocks, self.owner = list(blocks), owner
        self._padded: list[_Padded] = []
        self._refusals: defaultdict[nn.Module, dict[Hashable, str | None]] = defaultdict(dict)
        self._told: Generation | None = None

    def padded(self, block: nn.Module, call: Call) -> Call:
        """``call``, a compiled call of ``block``, that is given padded prompts."""

        def run(*arguments: Any, **named: Any) -> Any:
            if block is self._blocks[0]:
                # All blocks of a scale are given the same words, to compare by their identity. What a model
                # does to them between its scales is not always seen.
                self._padded.clear()
            if {*map(type, arguments), *map(type, named.values())}.isdisjoint(CONTAINERS):
                # Most models have no packed prompts, and pay for this at every call.
                return call(*arguments, **named)
            places = [at for at, value in enumerate(arguments) if is_packed(value)]
            names = [name for name, value in named.items() if is_packed(value)]
            if not (places or names) or not self._fits(block, arguments, named):
                return call(*arguments, **named)
            given = list(arguments)
            for at in places:
                given[at] = of_padded(arguments[at], self._pad(arguments[at][0]))
            for name in names:
                named[name] = of_padded(named[name], self._pad(named[name][0]))
            return call(*given, **named)

        return run

    def _pad(self, words: Tensor) -> Tensor:
        for known in self._padded:
            if known.is_of(words):
                return known.words
        padded = pad(words, room_for(len(words)))
        # Else Dynamo would trace all blocks anew for the second length.
        torch._dynamo.maybe_mark_dynamic(padded, 0)
        came = Footprint.of(words)
        assert came is not None, "words are a tensor"
        self._padded.append(_Padded(came, _version(words), padded))
        return padded

    def _fits(self, block: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether the block leaves unread what lies behind the words; asked once for each kind of call.

        What so many kinds have shown holds for all: a number may be another one in each call.
        """
        kind = *map(_kind, arguments), *((name, _kind(value)) for name, value in named.items())
        answers = self._refusals[block]
        if kind not in answers and len(answers) < _MOST_KINDS:
            answers[kind] = why_not_padded(block, self._blocks, arguments, named)
        refusal = answers[kind] if kind in answers else next(filter(None, answers.values()), None)
        if refusal is not None:
            self._tell(f"{_REFUSED}{refusal}")
        return refusal is None

    def _tell(self, reason: str) -> None:
        """Once a generation."""
        session = self.owner.session
        generation = None if session is None else session.generation
        if session is not None and generation is not None and generation is not self._told:
            self._told = generation
            session.note(reason)


def _version(words: Tensor) -> int | None:
    return None if words.is_inference() else words._version


def _kind(value: Any) -> Hashable:
    """What of an argument a block may act upon: a number (of a scale, say), or what the words are."""
    if is_packed(value):
        return value[0].shape[1], value[0].dtype
    return value if isinstance(value, _PLAIN) else None
