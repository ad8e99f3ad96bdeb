"""What a policy is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


class Step(NamedTuple):
    """One block call of a generation.

    Attributes:
        scale, layer: counted from 0 in the order in which they run.
        tokens: N of this scale.
        prefix: tokens of all earlier scales of the generation, pruned or not.
        rows: batch rows B; ``rows == samples * rows_per_sample``.
        rows_per_sample: rows that share one keep index, [all first rows, all second rows, ...].
    """

    scale: int
    layer: int
    tokens: int
    prefix: int
    rows: int
    rows_per_sample: int

    @property
    def samples(self) -> int:
        return self.rows // self.rows_per_sample


@dataclass(frozen=True)
class Dense:
    """Run every token; return the entropy map too if ``entropy`` says so."""

    entropy: bool = False
    fallback: str | None = None
    """Why pruning that was due here could not be decided, if that is so."""


class Choice(NamedTuple):
    """Kept tokens, ascending: of every sample [samples, K] int64, and the same of every batch row [B, K]."""

    kept: Tensor
    kept_of_rows: Tensor


@dataclass(frozen=True)
class Prune:
    """Run ``keep`` tokens of each sample.

    Attributes:
        keep: K, 2 <= K <= N.
        base: [B, N, C], what the stream becomes where no token is kept.
        choice: what was chosen already; or None, and then
        entropy: [samples, N] float, from which the graph's own gate chooses.
    """

    keep: int
    base: Tensor
    choice: Choice | None
    entropy: Tensor | None


Decision = Dense | Prune


class Outcome(NamedTuple):
    """What a block call gave: entropy [B, N or K], kept [samples, K] or None, stream in and out."""

    entropy: Tensor | None
    kept: Tensor | None
    stream_in: Tensor
    stream_out: Tensor


class Policy(Protocol):
    """Decides for each block call what runs. One policy object serves one session."""

    name: str
    exits_scales: bool
    """Whether tokens that are pruned at a scale must contribute a zero residual code."""

    def start_generation(self) -> None: ...

    def decide(self, step: Step, stream: Tensor) -> Decision: ...

    def observe(self, step: Step, outcome: Outcome) -> None: ...

    def complaints(self) -> list[str]:
        """Reasons, since the last call, why decisions were worse than they should be."""
