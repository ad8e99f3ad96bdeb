"""The floor that every policy must beat: the fine scales are not run at all."""

from __future__ import annotations

from torch import Tensor

from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import BasePolicy, Decision, Dense, Step
from toprovar_compiler.policies.budget import Budget


class FixedExitPolicy(BasePolicy):
    """Every token of the scales before ``start_scale``, and nothing of the scales from there on."""

    name = "fixed-exit"
    may_exit = True

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self._first = Budget(options, schedule).first_scale

    def decide(self, step: Step, stream: Tensor) -> Decision:
        return Dense()

    def exits_before(self, scale: int) -> bool:
        return self._first is not None and scale >= self._first
