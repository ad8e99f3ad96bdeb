"""The floor that every policy must beat: the fine scales are not run at all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import BasePolicy, Decision, Dense, Outcome, Step
from toprovar_compiler.policies.budget import Budget
from toprovar_compiler.policies.error_bound import FullMaps
from toprovar_compiler.policies.onset import Onset


class FixedExitPolicy(BasePolicy):
    """Every token of the scales before ``start_scale``, and nothing of the scales from there on.

    With ``scale_threshold`` the exit is not fixed: it comes after the start depth D of eq. 3, as the paper's
    scale dimension alone does.
    """

    name = "fixed-exit"
    may_exit = True

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self._budget, self._onset, self._full = Budget(options, schedule), Onset(options), FullMaps()

    def start_generation(self) -> None:
        self._onset.start_generation()
        self._full.start_generation()

    def decide(self, step: Step, stream: Tensor) -> Decision:
        first = self._budget.first_scale
        if first is not None and step.scale >= first and not self._onset.reached(step.scale):
            self._onset.wait()
        return Dense(entropy=self._onset.reads_entropy and self._budget.leads_to_pruning(step))

    def observe(self, step: Step, outcome: Outcome) -> None:
        if self._budget.leads_to_pruning(step):
            self._onset.observe(step, outcome)
        self._full.observe(step, outcome)

    def exits_before(self, scale: int) -> bool:
        first = self._budget.first_scale
        return first is not None and scale >= first and self._onset.reached(scale)

    def complaints(self) -> list[str]:
        return self._onset.complaints()

    def full_maps(self, scale: int) -> Sequence[Tensor]:
        return self._full.of(scale)
