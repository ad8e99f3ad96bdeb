"""The policy that prunes nothing."""

from __future__ import annotations

from torch import Tensor

from toprovar_compiler.policies.base import BasePolicy, Decision, Dense, Step


class DensePolicy(BasePolicy):
    """Every token runs, in the graph that plain Inductor would run."""

    name = "dense"

    def decide(self, step: Step, stream: Tensor) -> Decision:
        return Dense()
