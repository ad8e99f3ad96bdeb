"""The scale dimension: whether pruning may start, decided from the scales that ran."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.scale_depth import batch_depth, low_entropy_ratio, start_depth


class Onset:
    """Waits for the start depth D of every sample of the batch (section 4): later scales may be pruned.

    rho_s is that of the mean over layers of the scale's entropy maps, in the first row of each sample.
    Without ``scale_threshold`` nothing is waited for and nothing is read.
    """

    def __init__(self, options: Options) -> None:
        self._threshold, self._crossing = options.scale_threshold, options.scale_crossing
        self.start_generation()

    def start_generation(self) -> None:
        self._reached = self._threshold is None
        self._waits = False
        self._scale = -1
        self._total: Tensor | None = None
        self._ratios: list[Tensor] = []

    @property
    def reads_entropy(self) -> bool:
        """Whether blocks must return their entropy maps for this."""
        return not self._reached

    def observe(self, step: Step, outcome: Outcome) -> None:
        """Entropies of a block that ran in full, at a scale that may be D."""
        if self._reached or outcome.entropy is None:
            return
        own = outcome.entropy[: step.samples].double().mean(1)
        self._total = own if self._total is None or self._scale != step.scale else self._total + own
        self._scale = step.scale

    def reached(self, scale: int) -> bool:
        """Whether this scale comes after D; reads one number back per scale until one does."""
        if not self._reached and self._total is not None and self._scale < scale:
            self._ratios.append(low_entropy_ratio(self._total))
            self._total = None
            assert self._threshold is not None, "nothing is waited for without a threshold"
            depths = start_depth(torch.stack(self._ratios, 1), self._threshold, self._crossing)
            self._reached = int(batch_depth(depths)) < len(self._ratios)
        return self._reached

    def wait(self) -> None:
        """The scale that runs was due, and runs in full because of this."""
        self._waits = True

    def complaints(self) -> list[str]:
        """Whether the scale that ended ran in full because of this."""
        waited, self._waits = self._waits, False
        word = "down to" if self._crossing == "at-most" else "up to"
        reason = (
            f"the low-entropy ratio had not come {word} scale_threshold={self._threshold} in every sample: "
            "a scale was run in full"
        )
        return [reason] if waited else []
