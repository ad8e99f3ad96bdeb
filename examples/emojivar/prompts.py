"""The prompt grammar: GenEval's six tasks over emoji, with an optional background.

    prompt     = scene [ "on a" background ]
    scene      = "a" kind                                  (single)
               | "a" kind "and a" kind                     (two)
               | ("two" | "three" | "four") kind           (count)
               | "a" hue kind                              (colour)
               | "a" kind relation "a" kind                (position)
               | "a" hue kind "and a" hue kind             (attribution)
    relation   = "left of" | "right of" | "above of" | "below of"
    background = ("plain" | "textured") colour "background"
               | "gradient" colour "to" colour "background"

"above", "below" and "to the left of" are read too, articles may be left out, and kinds may be plural.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .vocabulary import (
    BACKGROUND_COLOURS,
    COLOURABLE,
    COUNTS,
    HUES,
    KINDS,
    RELATIONS,
    STYLES,
    PromptError,
    Vocabulary,
)

TASKS = ("single", "two", "count", "colour", "position", "attribution")
GRADIENT = "gradient"
COUNT_WORDS = {number: word for word, number in COUNTS.items()}
OPPOSITES = {"right": "left", "below": "above"}
EXAMPLES = "'a red mug', 'three apples on a plain teal background' or 'a cat left of a tree'"


@dataclass(frozen=True)
class Background:
    """A background's style and one colour, or two for a gradient."""

    style: str
    colours: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.style} {' to '.join(self.colours)} background"


@dataclass(frozen=True)
class Prompt:
    """What a prompt says; ``str()`` puts it in words again."""

    task: str
    kinds: tuple[str, ...]  # one, or two for the tasks with two objects
    hues: tuple[str, ...] = ()  # as many as kinds, or none
    count: int = 1  # of the only kind
    relation: str | None = None  # of the first kind to the second
    background: Background | None = None

    @property
    def objects(self) -> int:
        """How many emoji the picture holds."""
        return max(self.count, len(self.kinds))

    def canonical(self) -> Prompt:
        """The same scene in one of two wordings: "a pig right of a panda" as "a panda left of a pig".

        Which of two things stands where then follows from their order alone. Otherwise it would be the
        exclusive or of order and relation, of which training found nothing in 25 minutes of a GPU.
        """
        if self.relation not in OPPOSITES:
            return self
        return replace(self, relation=OPPOSITES[self.relation], kinds=self.kinds[::-1])

    def __str__(self) -> str:
        hues = self.hues or ("",) * len(self.kinds)
        named = [f"a {hue} {kind}" for hue, kind in zip(hues, self.kinds, strict=True)]
        if self.task == "count":
            scene = f"{COUNT_WORDS[self.count]} {self.kinds[0]}"
        elif self.task == "position":
            scene = f" {self.relation} of ".join(named)
        else:
            scene = " and ".join(named)
        tail = f" on a {self.background}" if self.background else ""
        return " ".join((scene + tail).split())


class _Reader:
    """Reads the words of one prompt from left to right."""

    def __init__(self, prompt: str, words: Sequence[str]) -> None:
        self.prompt, self.words, self.position = prompt, words, 0

    def peek(self) -> str:
        return self.words[self.position] if self.position < len(self.words) else ""

    def accept(self, *options: str) -> str:
        """The next word if it is one of ``options``, else the empty string."""
        word = self.peek()
        if word and word in options:
            self.position += 1
            return word
        return ""

    def expect(self, what: str, options: Sequence[str]) -> str:
        return self.accept(*options) or self.fail(what)

    def fail(self, expected: str) -> str:
        got = repr(self.peek()) if self.peek() else "the end"
        raise PromptError(
            f"prompt {self.prompt!r} requires {expected} at word {self.position + 1}, got {got}; "
            f"write it like {EXAMPLES}"
        )

    def thing(self) -> tuple[str, str]:
        """An optional article, an optional hue and a kind."""
        self.accept("a")
        hue = self.accept(*HUES)
        what = f"a thing to draw ({KINDS[0]}, {KINDS[1]}, ...)"
        return hue, self.expect(what if hue else f"a hue or {what}", KINDS)

    def relation(self) -> str:
        """A relation with its "to the" and "of", or the empty string."""
        toward = self.accept("to")
        if toward:
            self.accept("a")
        relation = self.expect("left or right", RELATIONS[:2]) if toward else self.accept(*RELATIONS)
        if relation and not self.accept("of") and relation in RELATIONS[:2]:
            self.fail("'of'")
        return relation

    def background(self) -> Background:
        self.accept("a")
        style = self.accept(*STYLES) or STYLES[0]
        colours = [self.expect("a background colour", tuple(BACKGROUND_COLOURS))]
        if style == GRADIENT:
            self.expect("'to'", ("to",))
            colours.append(self.expect("a background colour", tuple(BACKGROUND_COLOURS)))
        self.expect("'background'", ("background",))
        return Background(style, tuple(colours))


def parse(prompt: str, vocabulary: Vocabulary | None = None) -> Prompt:
    """The meaning of a prompt.

    Raises:
        PromptError: for a word outside the vocabulary, an order outside the grammar, or a hue on something
            that exists in one colour only.
    """
    words = (vocabulary or Vocabulary()).normalise(prompt)
    reader = _Reader(prompt, words)
    count = COUNTS.get(reader.accept(*COUNTS), 1)
    hue, kind = reader.thing()
    relation, second_hue, second_kind = "", "", ""
    if count == 1:
        relation = reader.relation()
        if relation or reader.accept("and"):
            second_hue, second_kind = reader.thing()
    background = reader.background() if reader.accept("on") else None
    if reader.peek():
        reader.fail("'on a ... background' or the end")
    kinds = (kind, second_kind) if second_kind else (kind,)
    hues = (hue, second_hue) if second_kind else (hue,)
    return _checked(prompt, kinds, hues, count, relation, background)


def _checked(
    prompt: str,
    kinds: tuple[str, ...],
    hues: tuple[str, ...],
    count: int,
    relation: str,
    background: Background | None,
) -> Prompt:
    """Assign the task, and refuse what no scene of the training data can show."""
    coloured = any(hues)
    if coloured and (count > 1 or relation or not all(hues)):
        raise PromptError(
            f"prompt {prompt!r} mixes hues with a count, a position or an uncoloured thing, which the model "
            "never saw; colour one thing ('a red mug') or both of two ('a red mug and a blue hat')"
        )
    for kind in kinds if coloured else ():
        if kind not in COLOURABLE:
            raise PromptError(
                f"{kind!r} of prompt {prompt!r} exists in one colour only; leave the hue out, "
                f"or colour one of: {', '.join(COLOURABLE)}"
            )
    if background and len(set(background.colours)) != len(background.colours):
        raise PromptError(
            f"prompt {prompt!r} requires two different colours in a gradient; use a plain background"
        )
    if count > 1:
        task = "count"
    elif relation:
        task = "position"
    elif coloured:
        task = "attribution" if len(kinds) == 2 else "colour"
    else:
        task = "two" if len(kinds) == 2 else "single"
    return Prompt(task, kinds, hues if coloured else (), count, relation or None, background)


def encode(prompts: Sequence[str | Prompt], vocabulary: Vocabulary, length: int) -> Tensor:
    """Word ids ``[B, length]`` int64 of prompts in their canonical wording, padded with 0.

    Raises:
        PromptError: see :func:`parse`.
    """
    ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        parsed = prompt if isinstance(prompt, Prompt) else parse(prompt, vocabulary)
        words = [vocabulary.id(word) for word in str(parsed.canonical()).split()]
        ids[row, : len(words)] = torch.tensor(words)
    return ids
