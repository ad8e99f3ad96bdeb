"""The scale dimension: whether pruning may start, decided from the scales that ran."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Step
from toprovar_compiler.policies.scale_depth import batch_depth, low_entropy_ratio, start_depth


class Onset:
    """Waits for the start depth D of every sample of the batch (section 4): later scales may be pruned.

    rho_s is that of the mean over layers of the scale's entropy maps, in the first row of each sample. It is
    looked at for the scales whose maps are observed, which are those from the one before ``start_scale`` on:
    that is the floor. Without ``scale_threshold`` nothing is waited for and nothing is read.
    """

    def __init__(self, options: Options) -> None:
        self._threshold, self._crossing = options.scale_threshold, options.scale_crossing
        self._waited_for: list[int] = []
        self.start_generation()

    def start_generation(self) -> None:
        self._reached = self._threshold is None
        self._scale = -1
        self._total: Tensor | None = None
        self._ratios: list[Tensor] = []

    @property
    def reads_entropy(self) -> bool:
        """Whether blocks must return their entropy maps for this."""
        return not self._reached

    def observe(self, step: Step, entropy: Tensor) -> None:
        """Entropy ``[B, N]`` of a block that ran in full."""
        if self._reached:
            return
        own = entropy[: step.samples].double()
        self._total = own if self._total is None or self._scale != step.scale else self._total + own
        self._scale = step.scale

    def reached(self, step: Step) -> bool:
        """Whether this step's scale comes after D; reads one number back per scale until it does."""
        if not self._reached and self._total is not None and self._scale < step.scale:
            self._ratios.append(low_entropy_ratio(self._total))
            self._total = None
            assert self._threshold is not None, "nothing is waited for without a threshold"
            depths = start_depth(torch.stack(self._ratios, 1), self._threshold, self._crossing)
            self._reached = int(batch_depth(depths)) < len(self._ratios)
        if not self._reached and step.scale not in self._waited_for:
            self._waited_for.append(step.scale)
        return self._reached

    def complaints(self) -> list[str]:
        """One for each scale, since the last call, that ran in full because of this."""
        waited, self._waited_for = self._waited_for, []
        word = "down to" if self._crossing == "at-most" else "up to"
        return [
            f"the low-entropy ratio had not come {word} scale_threshold={self._threshold} in every sample: "
            "a scale was run in full"
            for _ in waited
        ]
