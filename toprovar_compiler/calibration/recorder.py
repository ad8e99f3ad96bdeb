"""Records the entropies of single heads while a model paints dense."""

from __future__ import annotations

import torch
from torch import Tensor

from toprovar_compiler.errors import UnsupportedModelError
from toprovar_compiler.policies.base import BasePolicy, Decision, Dense, Outcome, Step


class HeadRecorder(BasePolicy):
    """Every token runs, and the entropies are kept, as shares of the largest that their keys allow."""

    name = "dense"

    def __init__(self) -> None:
        self._maps: dict[int, dict[int, Tensor]] = {}
        self._generations = 0

    def start_generation(self) -> None:
        self._maps = {}
        self._generations += 1

    def decide(self, step: Step, stream: Tensor) -> Decision:
        return Dense(entropy=True)

    def observe(self, step: Step, outcome: Outcome) -> None:
        share = outcome.entropy_share
        if share is not None:
            self._maps.setdefault(step.scale, {})[step.layer] = share

    def take(self, pictures: int) -> dict[int, Tensor]:
        """scale -> H / log Nk, [pictures, L, H, N], of the first batch row of each picture of the generation
        that ended; scales where not all layers gave entropies of one shape are left out.

        Raises:
            UnsupportedModelError: no scale is left, or the pictures came from several generations.
        """
        taken, self._maps = self._maps, {}
        generations, self._generations = self._generations, 0
        if generations > 1:
            raise UnsupportedModelError(
                f"calibration requires a model that paints a batch of prompts in one generation, got "
                f"{generations} for {pictures} prompts; use --batch 1"
            )
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
