"""What a policy is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn


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


class Dense(NamedTuple):
    """Run every token; return the entropy map too if ``entropy`` says so."""

    entropy: bool = False
    fallback: str | None = None
    """Why pruning that was due here could not be decided, if that is so."""


class Choice(NamedTuple):
    """Kept tokens, ascending: of every sample [samples, K] int64, and the same of every batch row [B, K]."""

    kept: Tensor
    kept_of_rows: Tensor


class Prune(NamedTuple):
    """Run ``keep`` tokens of each sample.

    Attributes:
        keep: K, 2 <= K <= N.
        base: [B, N, C], what the stream becomes where no token is kept.
        choice: what was chosen already; or None, and then
        entropy: [samples, N] float, from which the graph's own gate chooses.
        maps: whether the block must return the entropy maps of the kept tokens.
    """

    keep: int
    base: Tensor
    choice: Choice | None
    entropy: Tensor | None
    maps: bool


Decision = Dense | Prune


class Outcome(NamedTuple):
    """What a block call gave.

    Attributes:
        entropy: [B, H, N] in nats, or [B, H, K] of the kept tokens; None where it was not asked for.
        kept: [samples, K]; None where all tokens ran.
        stream_in, stream_out: [B, N, C].
        keys: how many keys a query attended to; those that pruned tokens did not leave are not among them.
    """

    entropy: Tensor | None
    kept: Tensor | None
    stream_in: Tensor
    stream_out: Tensor
    keys: int

    @property
    def entropy_share(self) -> Tensor | None:
        """The entropy over the largest that so many keys allow, log Nk; None where there is one key."""
        return None if self.entropy is None or self.keys < 2 else self.entropy / math.log(self.keys)


class Policy(Protocol):
    """Decides for each block call what runs. One policy object serves one session."""

    name: str
    exits_scales: bool
    """Whether tokens that are pruned at a scale must contribute a zero residual code."""
    may_exit: bool
    """Whether a generation may end before its last scale."""
    may_replace: bool
    """Whether a scale may be run for the conditional rows alone."""

    @property
    def learning(self) -> bool:
        """Whether the running generation is one to learn from, which runs in full as it should."""

    def meet(self, model: nn.Module) -> None:
        """Check what the policy needs to know of the model, before anything runs; the model is not kept.

        Raises:
            ToprovarError: that is missing.
        """

    def start_generation(self) -> None: ...

    def decide(self, step: Step, stream: Tensor) -> Decision: ...

    def observe(self, step: Step, outcome: Outcome) -> None: ...

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        """The running scale's codes [samples, N], and what they stand for in the codebook [samples, N, C]."""

    def exits_before(self, scale: int) -> bool:
        """Whether this scale and all later ones are not run. The same answer all through a generation."""

    def replaces_unconditional(self, scale: int) -> bool:
        """Whether from this scale on the conditional rows' results stand for the unconditional ones too."""

    def complaints(self) -> list[str]:
        """Reasons, since the last call, why decisions were worse than they should be.

        Waits for no device: what one has yet to find out is told when it has.
        """

    def full_maps(self, scale: int) -> Sequence[Tensor]:
        """Entropies [samples, H, N] of all layers of the last scale before pruning, which ran in full.

        Nothing of other scales, and where they were not asked for.
        """


class BasePolicy:
    """What a policy does that has nothing to add: it remembers nothing and runs every scale."""

    exits_scales = False
    may_exit = False
    may_replace = False

    @property
    def learning(self) -> bool:
        return False

    def meet(self, model: nn.Module) -> None:
        """Nothing has to be known of the model."""

    def start_generation(self) -> None:
        """Nothing is remembered between generations."""

    def observe(self, step: Step, outcome: Outcome) -> None:
        """Nothing is learned from what ran."""

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        """Nothing is learned from codes."""

    def exits_before(self, scale: int) -> bool:
        return False

    def replaces_unconditional(self, scale: int) -> bool:
        return False

    def complaints(self) -> list[str]:
        return []

    def full_maps(self, scale: int) -> Sequence[Tensor]:
        return ()
