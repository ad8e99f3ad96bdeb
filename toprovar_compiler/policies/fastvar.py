"""FastVAR (arXiv 2503.23367), cached token pruning, with a whole block as the unit."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.kernels import ops  # noqa: F401  (registers toprovar::entropy_gate)
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import BasePolicy, Choice, Decision, Dense, Outcome, Prune, Step
from toprovar_compiler.policies.budget import Budget
from toprovar_compiler.policies.restoration import DesignatedUpdate


class FastvarPolicy(BasePolicy):
    """Keeps the tokens farthest from their mean, anew in every layer; the others get a cached update.

    As in the authors' code: the score of a token is its squared distance to the mean token of the block's
    input, every batch row chooses for itself, pruned tokens leave no keys and values behind, and are restored
    by the update of the last scale before pruning (area interpolation). Where that code chooses tokens anew
    for each of a block's parts (self-attention, cross-attention, feed-forward), the block's one choice, that
    of its first part, is used for all of them; where the parts would choose alike, the results are the same,
    because the parts' cached updates add up to the block's.

    ``layer_budgets`` names the layers that are pruned (the authors prune layers 3 to 27 of Infinity's 32, and
    all of HART's), ``drop_scales`` how many of the last scales are not run at all (Infinity: two).
    """

    name = "fastvar"

    def __init__(self, options: Options, schedule: tuple[int, ...] | None) -> None:
        self._budget = Budget(options, schedule)
        self._restoration = DesignatedUpdate()
        self._first_dropped = None if schedule is None else len(schedule) - options.drop_scales
        self.may_exit = options.drop_scales > 0

    def start_generation(self) -> None:
        self._restoration.start_generation()

    def decide(self, step: Step, stream: Tensor) -> Decision:
        if not self._budget.is_due(step) or self.exits_before(step.scale):
            return Dense()
        keep = self._budget.keep(step)
        if keep >= step.tokens:
            return Dense()
        base = self._restoration.base(step, stream)
        if base is None:
            return Dense(fallback="no cached update of an earlier scale on a square token grid")
        kept_of_rows = torch.ops.toprovar.entropy_gate(-distance_to_mean(stream), keep)
        choice = Choice(kept_of_rows[: step.samples], kept_of_rows)
        return Prune(keep, base, choice, entropy=None, maps=False)

    def observe(self, step: Step, outcome: Outcome) -> None:
        if outcome.kept is not None or self._budget.leads_to_pruning(step):
            self._restoration.observe(step, outcome)

    def exits_before(self, scale: int) -> bool:
        return self.may_exit and self._first_dropped is not None and scale >= self._first_dropped


def distance_to_mean(stream: Tensor) -> Tensor:
    """Squared Euclidean distance of each token to the mean token.

    stream ``[B, N, C]`` floating -> ``[B, N]``, at least float32. Raises nothing.
    """
    stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return (stream - stream.mean(1, keepdim=True)).square().sum(-1)
