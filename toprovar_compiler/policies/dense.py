"""The policy that prunes nothing."""

from __future__ import annotations

from torch import Tensor

from toprovar_compiler.policies.base import Decision, Dense, Outcome, Step


class DensePolicy:
    """Every token runs, in the graph that plain Inductor would run."""

    name = "dense"
    exits_scales = False

    def start_generation(self) -> None:
        """Nothing is remembered between generations."""

    def decide(self, step: Step, stream: Tensor) -> Decision:
        return Dense()

    def observe(self, step: Step, outcome: Outcome) -> None:
        """Nothing is learned from what ran."""

    def complaints(self) -> list[str]:
        return []
