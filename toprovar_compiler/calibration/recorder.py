"""Records the entropies of single heads while a model paints dense."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from toprovar_compiler.errors import UnsupportedModelError
from toprovar_compiler.policies.base import BasePolicy, Decision, Dense, Outcome, Step


class HeadRecorder(BasePolicy):
    """Every token runs, and the entropies are kept, as shares of the largest that their keys allow."""

    name = "dense"

    def __init__(self) -> None:
        self._maps: dict[int, dict[int, Tensor]] = {}

    def start_generation(self) -> None:
        self._maps = {}

    def decide(self, step: Step, stream: Tensor) -> Decision:
        return Dense(entropy=True)

    def observe(self, step: Step, outcome: Outcome) -> None:
        if outcome.entropy is not None and outcome.keys > 1:
            share = outcome.entropy.detach() / math.log(outcome.keys)
            self._maps.setdefault(step.scale, {})[step.layer] = share

    def take(self, pictures: int) -> dict[int, Tensor]:
        """scale -> H / log Nk, [pictures, L, H, N], of the first batch row of each picture of the generation
        that ended; scales where not all layers gave entropies of one shape are left out.

        Raises:
            UnsupportedModelError: no scale is left.
        """
        taken, self._maps = self._maps, {}
        layers = max((len(maps) for maps in taken.values()), default=0)
        found = {
            scale: torch.stack([maps[layer][:pictures] for layer in sorted(maps)], 1)
            for scale, maps in taken.items()
            if len(maps) == layers and len({entropy.shape for entropy in maps.values()}) == 1
        }
        if not found:
            raise UnsupportedModelError(
                "calibration requires a model whose blocks give their attention's entropy at some scale, got "
                "none; toprovar_compiler.summary() says why"
            )
        return found
