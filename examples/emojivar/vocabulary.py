"""The words that the model knows, and their ids."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

PAD = "<pad>"
STYLES = ("plain", "gradient", "textured")
COUNTS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left", "right", "above", "below")
HUES = ("red", "green", "blue", "yellow", "purple")
BACKGROUND_COLOURS = {  # red, green, blue in [0, 1]
    "white": (0.96, 0.96, 0.95),
    "gray": (0.55, 0.57, 0.60),
    "navy": (0.10, 0.14, 0.34),
    "teal": (0.10, 0.52, 0.52),
    "pink": (0.98, 0.72, 0.80),
    "beige": (0.90, 0.82, 0.66),
    "orange": (0.95, 0.58, 0.22),
    "mint": (0.66, 0.92, 0.78),
}
KINDS = tuple(
    """
    cat dog panda frog pig lion fox monkey unicorn owl penguin fish octopus turtle butterfly ladybug whale
    snail apple banana grapes watermelon strawberry pineapple lemon carrot corn mushroom pizza burger donut
    cupcake icecream egg mug car bus rocket airplane sailboat bicycle balloon gift book umbrella hat shirt
    crown key bell guitar clock camera lightbulb ball star heart flower tree cactus snowman ghost robot house
    """.split()
)
COLOURABLE = tuple(
    "apple mug car bus balloon gift book umbrella hat shirt heart butterfly star fish guitar key".split()
)
WORDS = (
    PAD,
    "a",
    "and",
    "of",
    "on",
    *STYLES,
    "background",
    "to",
    *COUNTS,
    *RELATIONS,
    *HUES,
    *BACKGROUND_COLOURS,
)
SYNONYMS = {
    "an": "a",
    "the": "a",
    "one": "a",
    "2": "two",
    "3": "three",
    "4": "four",
    "noisy": "textured",
    "grey": "gray",
    "plane": "airplane",
    "bike": "bicycle",
    "present": "gift",
    "cup": "mug",
    "cacti": "cactus",
    "snowmen": "snowman",
}
NEAR_MATCHES = 3
PLURAL_ENDINGS = (("ies", "y"), ("es", ""), ("s", ""))


class PromptError(ValueError):
    """A prompt has a word outside the vocabulary, or words in an order that the grammar lacks."""


class Vocabulary:
    """Maps words to ids and back; forgiving about articles, plurals and a few synonyms."""

    def __init__(self) -> None:
        self.words: tuple[str, ...] = WORDS + KINDS
        self._ids = {word: index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def id(self, word: str) -> int:
        """Id of a word as it stands in :attr:`words`; :class:`PromptError` for any other."""
        if word not in self._ids:
            raise PromptError(self._unknown(word, word))
        return self._ids[word]

    def text(self, ids: Iterable[int]) -> str:
        """The words of ``ids`` without padding."""
        return " ".join(self.words[index] for index in ids if index)

    def normalise(self, prompt: str) -> list[str]:
        """The vocabulary words of a prompt.

        Lower case, commas and a final full stop dropped, synonyms replaced ("noisy" for "textured", "an"
        for "a"), plurals made singular, names written apart joined ("ice cream").

        Raises:
            PromptError: naming the first word outside the vocabulary, and the nearest ones inside it.
        """
        if not isinstance(prompt, str):
            raise PromptError(
                f"a prompt requires a str, got {type(prompt).__name__}; pass text such as 'a cat'"
            )
        raw = prompt.lower().replace(",", " ").rstrip(" .").split()
        words: list[str] = []
        position = 0
        while position < len(raw):
            joined = "".join(raw[position : position + 2])
            found = self._find(raw[position])
            if found is None and joined != raw[position] and (found := self._find(joined)):
                position += 1
            if found is None:
                raise PromptError(self._unknown(raw[position], prompt))
            words.append(found)
            position += 1
        return words

    def _find(self, word: str) -> str | None:
        for candidate in self._forms(word):
            candidate = SYNONYMS.get(candidate, candidate)
            if candidate in self._ids and candidate != PAD:
                return candidate
        return None

    @staticmethod
    def _forms(word: str) -> Sequence[str]:
        singulars = [word.removesuffix(end) + stem for end, stem in PLURAL_ENDINGS if word.endswith(end)]
        return [word, *singulars]

    def _unknown(self, word: str, prompt: str) -> str:
        known = [*self.words[1:], *SYNONYMS]
        near = difflib.get_close_matches(word, known, n=NEAR_MATCHES)
        hint = (
            f"did you mean {' or '.join(repr(match) for match in near)}?"
            if near
            else f"it can draw: {', '.join(KINDS)}"
        )
        size = len(self) - 1
        return f"word {word!r} of prompt {prompt!r} is outside the model's vocabulary of {size} words; {hint}"
