"""The work in pieces: a picture for each prompt and sample, in batches whoever paints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """One picture to paint, by every policy from the same seed."""

    prompt: int
    sample: int
    text: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.prompt:05d}-{self.sample:02d}"


@dataclass(frozen=True)
class Batch:
    """Pictures that are painted together; ``size`` is that of all batches of the run."""

    number: int
    units: tuple[Unit, ...]
    size: int

    @property
    def texts(self) -> list[str]:
        """``size`` prompts. A short last batch is filled up with its last prompt: a batch of another size
        would have other graphs compiled, and what they give may differ in the last bits."""
        texts = [unit.text for unit in self.units]
        return texts + texts[-1:] * (self.size - len(texts))

    @property
    def seed(self) -> int:
        """Of the first picture; that of picture i is ``seed + i``."""
        return self.units[0].seed


def make_batches(prompts: Sequence[str], samples: int, seed: int, size: int) -> list[Batch]:
    """All samples of the first prompt, then of the second, and so on, in batches of ``size``.

    Seeds are ``seed``, ``seed + 1``, ... in that order. There are never more places than pictures.
    """
    pairs = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(samples)]
    units = [Unit(p, s, prompts[p], seed + place) for place, (p, s) in enumerate(pairs)]
    size = min(size, len(units))
    starts = range(0, len(units), size)
    return [Batch(number, tuple(units[at : at + size]), size) for number, at in enumerate(starts)]
