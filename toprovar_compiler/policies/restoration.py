"""What a token becomes that was not computed (NOTES: gap 5 of the paper)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn.functional import interpolate

from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.entropy_source import resize
from toprovar_compiler.schedule import grid_of


class Restoration(Protocol):
    """Makes the base that kept tokens are scattered into."""

    per_scale: bool
    """One choice of tokens for all layers of a scale, instead of one per layer."""
    exits_scales: bool
    """Pruned tokens must contribute a zero residual code at this scale."""

    def start_generation(self) -> None: ...

    def base(self, step: Step, stream: Tensor) -> Tensor | None:
        """[B, N, C] for the stream [B, N, C] that comes in, or None if it cannot be made yet."""

    def observe(self, step: Step, outcome: Outcome) -> None: ...


class Bypass:
    """The residual stream passes through: the layer adds nothing to a pruned token (NOTES 5a)."""

    per_scale = False
    exits_scales = False

    def start_generation(self) -> None:
        """Nothing is remembered."""

    def base(self, step: Step, stream: Tensor) -> Tensor | None:
        return stream

    def observe(self, step: Step, outcome: Outcome) -> None:
        """Nothing is learned."""


class ScaleExit(Bypass):
    """A pruned token leaves the scale: no layer computes it, and its residual code is zero."""

    per_scale = True
    exits_scales = True


class CachedUpdate:
    """A pruned token gets the update that the layer made at the previous scale, resized (NOTES 5b)."""

    per_scale = False
    exits_scales = False

    def __init__(self, first_scale: int | None) -> None:
        self._first_scale = first_scale
        self.start_generation()

    def start_generation(self) -> None:
        self._updates: dict[int, Tensor] = {}

    def base(self, step: Step, stream: Tensor) -> Tensor | None:
        update = self._updates.get(step.layer)
        # Where guidance has ended since, the rows that are left are the first ones.
        resized = None if update is None else resize(update[: len(stream)].transpose(1, 2), step.tokens)
        return None if resized is None else stream + resized.transpose(1, 2)

    def observe(self, step: Step, outcome: Outcome) -> None:
        if self._first_scale is None or step.scale + 1 >= self._first_scale:
            self._updates[step.layer] = outcome.stream_out - outcome.stream_in


class DesignatedUpdate:
    """FastVAR's cached token restoration: a pruned token gets the layer's update of one designated scale.

    That is the last scale that the layer ran in full before it was first pruned; later scales do not renew
    it. The update, [B, n, C], is brought to the new grid by area interpolation.
    """

    per_scale = False
    exits_scales = False

    def __init__(self) -> None:
        self.start_generation()

    def start_generation(self) -> None:
        self._updates: dict[int, Tensor] = {}
        self._pruned: set[int] = set()

    def base(self, step: Step, stream: Tensor) -> Tensor | None:
        update = self._updates.get(step.layer)
        if update is None:
            return None
        old, new = grid_of(update.shape[1]), grid_of(step.tokens)
        if old is None or new is None:
            return None
        grid = update[: len(stream)].transpose(1, 2).unflatten(2, old)
        return stream + interpolate(grid, size=new, mode="area").flatten(2).transpose(1, 2)

    def observe(self, step: Step, outcome: Outcome) -> None:
        if outcome.kept is not None:
            self._pruned.add(step.layer)
        elif step.layer not in self._pruned:
            self._updates[step.layer] = outcome.stream_out - outcome.stream_in
