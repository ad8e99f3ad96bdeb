"""Records what a policy decided and what the blocks returned, call by call, without changing either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toprovar_compiler.policies.base import Decision, Dense, Outcome, Policy, Step


class Call(NamedTuple):
    """One block call, of the first batch row alone.

    Attributes:
        tokens: N of the scale.
        kept: K, the tokens that were computed; N where nothing was pruned.
        entropy: [N] float32 in nats, the mean over heads; NaN for tokens that were not computed. None where
            the block did not return it.
    """

    tokens: int
    kept: int
    entropy: Tensor | None


Calls = Mapping[tuple[int, int], Call]
"""(scale, layer) -> the call, of one generation."""


class Recorder:
    """A policy that answers as ``policy`` does, and remembers the calls of the last generation."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.name, self.exits_scales = policy.name, policy.exits_scales
        self.may_exit, self.may_replace = policy.may_exit, policy.may_replace
        self._calls: dict[tuple[int, int], Call] = {}

    def take_calls(self) -> Calls:
        """The calls of the generation that ended, on the CPU; they are forgotten here."""
        calls, self._calls = self._calls, {}
        return {
            place: call if call.entropy is None else call._replace(entropy=call.entropy.cpu())
            for place, call in calls.items()
        }

    @property
    def learning(self) -> bool:
        return self.policy.learning

    def meet(self, model: nn.Module) -> None:
        self.policy.meet(model)

    def start_generation(self) -> None:
        self._calls = {}
        self.policy.start_generation()

    def decide(self, step: Step, stream: Tensor) -> Decision:
        return self.policy.decide(step, stream)

    def observe(self, step: Step, outcome: Outcome) -> None:
        kept = step.tokens if outcome.kept is None else outcome.kept.shape[-1]
        self._calls[step.scale, step.layer] = Call(step.tokens, kept, _first_row(step, outcome))
        self.policy.observe(step, outcome)

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        self.policy.observe_codes(codes, vectors)

    def exits_before(self, scale: int) -> bool:
        return self.policy.exits_before(scale)

    def replaces_unconditional(self, scale: int) -> bool:
        return self.policy.replaces_unconditional(scale)

    def complaints(self) -> list[str]:
        return self.policy.complaints()

    def full_maps(self, scale: int) -> Sequence[Tensor]:
        return self.policy.full_maps(scale)


class EntropyRecorder(Recorder):
    """The same, but every block that runs in full returns its entropy, asked for by the policy or not.

    Such blocks run the graph with entropy in place of the plain one: equal but for rounding.
    """

    def decide(self, step: Step, stream: Tensor) -> Decision:
        decision = super().decide(step, stream)
        return decision._replace(entropy=True) if isinstance(decision, Dense) else decision


def _first_row(step: Step, outcome: Outcome) -> Tensor | None:
    """The entropy of the first batch row, the conditional one under guidance, at all N places."""
    if outcome.entropy is None:
        return None
    entropy = outcome.entropy[0].detach().float().mean(0)
    if outcome.kept is None:
        return entropy
    everywhere = torch.full((step.tokens,), torch.nan, device=entropy.device)
    return everywhere.scatter(0, outcome.kept[0], entropy)
