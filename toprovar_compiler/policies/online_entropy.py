"""Learns from a model's first generation what its entropies say, where there is no calibration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.calibrated_entropy import CalibratedEntropy
from toprovar_compiler.policies.entropy_source import BaseSource, LayerMean
from toprovar_compiler.policies.gate_fit import GateFit, standardised
from toprovar_compiler.schedule import grid_of

RIDGE = 0.3
"""Penalty on the squares of standardised weights, per token. One picture has few tokens, and they are much
alike: with a hundredth of it half of what the gate gains is lost (decision 8)."""
_FEWEST_TOKENS = 4

_LEARNING = "a generation ran in full, to learn which heads' entropies say where residual codes are large"
_BLIND = (
    "no residual codes were seen to learn from: tokens are ranked by the mean entropy of all layers; "
    "'toprovar calibrate' needs none"
)


class OnlineEntropy(BaseSource):
    """Ranks by gates that the first whole generation, which runs in full, was fitted to.

    What a gate predicts is how large the next scale's residual codes are, as codebook vectors: averaged
    over the place of each token and z-scored over each picture. Pictures are not needed, and no file.

    Args:
        gates_for: the scales that need a gate, if they are known beforehand.
    """

    reads_entropy = True

    def __init__(self, gates_for: Sequence[int] | None) -> None:
        self._gates_for = gates_for
        self._fits: dict[int, GateFit] = {}
        self._learned: CalibratedEntropy | LayerMean | None = None
        self._generations = 0
        self._scale = -1
        self._told = False
        self._maps: dict[int, Tensor] = {}
        self._earlier: dict[int, Tensor] = {}

    @property
    def learning(self) -> bool:
        """Whether the generation that runs is learned from, and runs in full."""
        return self._learned is None

    @property
    def missing(self) -> str | None:
        return None if self._learned is None else self._learned.missing

    def start_generation(self) -> None:
        if self._learned is None and self._generations:
            self._learn()
        self._generations += 1
        self._scale, self._told, self._maps, self._earlier = -1, False, {}, {}
        if self._learned is not None:
            self._learned.start_generation()

    def scores(self, step: Step) -> Tensor | None:
        return None if self._learned is None else self._learned.scores(step)

    def observe(self, step: Step, outcome: Outcome) -> None:
        if self._learned is not None:
            self._learned.observe(step, outcome)
            return
        share = outcome.entropy_share
        if share is None or outcome.kept is not None:
            return
        if step.scale != self._scale:
            # Entropies are to predict the codes of the very next scale.
            self._earlier = self._maps if step.scale == self._scale + 1 else {}
            self._scale, self._maps = step.scale, {}
        self._maps[step.layer] = share

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        """Codes of the running scale: what the entropies of the scale before are to predict."""
        earlier = [self._earlier[layer] for layer in sorted(self._earlier)]
        alike = len({entropy.shape[1:] for entropy in earlier}) == 1
        same_scale = {entropy.shape[-1] for entropy in self._maps.values()} == {codes.shape[1]}
        if self._learned is not None or not (alike and same_scale) or len(earlier) != len(self._maps):
            return
        old, new = grid_of(earlier[0].shape[-1]), grid_of(codes.shape[1])
        if old is None or new is None or earlier[0].shape[-1] < _FEWEST_TOKENS:
            return
        entropies = torch.stack([entropy[: len(codes)] for entropy in earlier], 1)
        length = vectors.detach().float().norm(dim=-1).unflatten(1, new)
        wanted = standardised(adaptive_avg_pool2d(length[:, None], old).flatten(1))
        shape = entropies.shape
        fit = self._fits.setdefault(self._scale - 1, GateFit(shape[1], shape[2], entropies.device))
        fit.add(entropies, wanted)

    def complaints(self) -> list[str]:
        if self._learned is None:
            told, self._told = self._told, True
            return [] if told else [_LEARNING]
        blind = [_BLIND] if isinstance(self._learned, LayerMean) else []
        return [*blind, *self._learned.complaints()]

    def _learn(self) -> None:
        """From what was seen so far; a generation that broke off may not have been enough."""
        gates = {scale: fit.solve(RIDGE) for scale, fit in self._fits.items() if fit.tokens}
        if not gates:
            self._learned = LayerMean()
        elif self._gates_for is None or set(self._gates_for) <= set(gates):
            self._learned = CalibratedEntropy(gates)


def scales_with_gates(schedule: Sequence[int] | None, first_pruned: int | None) -> list[int] | None:
    """Scales from whose entropies the next one is ranked; None where the schedule is not known beforehand."""
    if schedule is None or first_pruned is None:
        return None
    return [
        scale
        for scale in range(max(first_pruned - 1, 0), len(schedule) - 1)
        if schedule[scale] >= _FEWEST_TOKENS and grid_of(schedule[scale]) and grid_of(schedule[scale + 1])
    ]
