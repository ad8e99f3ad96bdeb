"""Where the entropy that ranks a scale's tokens comes from.

A layer's own entropy at a scale is known only after its attention ran for all tokens, so the ranking
uses a map that exists already (NOTES: gap 4 of the paper). Maps are means over heads, float32; a ranking
uses the first row of each sample (the conditional one under classifier-free guidance), [samples, N]. What
calibration makes of single heads is in :mod:`toprovar_compiler.policies.calibrated_entropy`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.late_flag import LateFlag
from toprovar_compiler.schedule import grid_of


class EntropySource(Protocol):
    """Collects entropy maps of what ran, and ranks the tokens of what is to run: lowest scores are kept."""

    @property
    def reads_entropy(self) -> bool:
        """Whether blocks must return their entropy maps."""

    @property
    def missing(self) -> str | None:
        """Why pruning is not possible where there are no scores; None where that is as it should be."""

    @property
    def learning(self) -> bool:
        """Whether the running generation is one to learn from, which runs in full."""

    def start_generation(self) -> None: ...

    def scores(self, step: Step) -> Tensor | None:
        """Scores [samples, N] of the step's tokens, or None if there are none yet."""

    def observe(self, step: Step, outcome: Outcome) -> None:
        """A block ran; with its entropies, or without where they were not asked for."""

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        """The running scale's codes [samples, N], and what they stand for in the codebook [samples, N, C]."""

    def complaints(self) -> list[str]:
        """Reasons, since the last call, why a ranking was not made of what it should be."""


class BaseSource:
    """What a source does that has nothing to add."""

    @property
    def learning(self) -> bool:
        return False

    def observe(self, step: Step, outcome: Outcome) -> None:
        """Nothing is learned from what ran."""

    def observe_codes(self, codes: Tensor, vectors: Tensor) -> None:
        """Nothing is learned from codes."""

    def complaints(self) -> list[str]:
        return []


def resize(maps: Tensor, tokens: int) -> Tensor | None:
    """Maps [..., n] on a square grid to [..., tokens] by nearest neighbour; None if a grid is no square."""
    old, new = grid_of(maps.shape[-1]), grid_of(tokens)
    if old is None or new is None:
        return None
    flat = maps.reshape(1, -1, *old)
    return interpolate(flat, size=new, mode="nearest").reshape(*maps.shape[:-1], tokens)


class _Maps:
    """Entropy maps of one scale by layer; where only kept tokens ran, laid over an older map."""

    def __init__(self, scale: int, tokens: int) -> None:
        self.scale, self.tokens = scale, tokens
        self._entropy: dict[int, Tensor] = {}
        self._kept: dict[int, Tensor | None] = {}

    def add(self, layer: int, entropy: Tensor, kept: Tensor | None) -> None:
        self._entropy[layer], self._kept[layer] = entropy, kept

    def layer(self, layer: int, older: Tensor | None) -> Tensor | None:
        if layer not in self._entropy:
            return None
        entropy, kept = self._entropy[layer], self._kept[layer]
        if kept is None:
            return entropy
        samples = kept.shape[0]
        under = None if older is None else resize(older[:samples], self.tokens)
        return None if under is None else under.scatter(-1, kept, entropy[:samples])

    def layers(self) -> list[int]:
        return sorted(self._entropy)


class SameLayer(BaseSource):
    """The same layer's map of the previous scale, resized (NOTES 4a)."""

    reads_entropy = True
    missing: str | None = "no entropy map of an earlier scale on a square token grid"

    def __init__(self) -> None:
        self.start_generation()

    def start_generation(self) -> None:
        self._current: _Maps | None = None
        self._previous: dict[int, Tensor] = {}

    def scores(self, step: Step) -> Tensor | None:
        self._advance(step)
        known = self._previous.get(step.layer)
        return None if known is None else resize(known[: step.samples], step.tokens)

    def observe(self, step: Step, outcome: Outcome) -> None:
        self._advance(step)
        if outcome.entropy is None:
            return
        if self._current is None:
            self._current = _Maps(step.scale, step.tokens)
        self._current.add(step.layer, outcome.entropy.mean(1), outcome.kept)

    def _advance(self, step: Step) -> None:
        """At a new scale: complete the maps of the scale that ended."""
        ended = self._current
        if ended is None or ended.scale == step.scale:
            return
        maps = {layer: ended.layer(layer, self._previous.get(layer)) for layer in ended.layers()}
        self._previous = {layer: made for layer, made in maps.items() if made is not None}
        self._current = None
        self._scale_ended(list(self._previous.values()))

    def _scale_ended(self, maps: list[Tensor]) -> None:
        """For sources that need all layers of a scale at once."""


class LayerMean(SameLayer):
    """The mean over layers of the previous scale's maps, each z-scored over its tokens (NOTES, rehearsal).

    One map for all layers of a scale, known before the scale's first layer runs. A layer whose map is
    not finite is left out, on the device; that it happened is told when the device has come so far.
    """

    def __init__(self) -> None:
        self._finite = LateFlag()
        super().__init__()

    def start_generation(self) -> None:
        super().start_generation()
        self._mean: Tensor | None = None

    def complaints(self) -> list[str]:
        if not self._finite.failed():
            return []
        return ["an entropy map was not finite: its layer was left out of the ranking"]

    def scores(self, step: Step) -> Tensor | None:
        self._advance(step)
        return None if self._mean is None else resize(self._mean[: step.samples], step.tokens)

    def _scale_ended(self, maps: list[Tensor]) -> None:
        if not maps or maps[0].shape[-1] < 2:
            self._mean = None
            return
        samples = min(len(m) for m in maps)
        stacked = torch.stack([m[:samples] for m in maps])
        spread, centre = torch.std_mean(stacked, dim=-1, keepdim=True)
        scores = (stacked - centre) / spread.clamp_min(torch.finfo(stacked.dtype).tiny)
        finite = scores.isfinite().all(-1, keepdim=True)
        self._finite.add(finite.all())
        self._mean = torch.where(finite, scores, 0.0).sum(0) / finite.sum(0).clamp_min(1)


class LastFullLayer(BaseSource):
    """The map of the last layer that ran in full at this scale (NOTES 4b)."""

    reads_entropy = True
    # The first layer of a scale has to run in full for the others to have a map: no fallback.
    missing: str | None = None

    def __init__(self) -> None:
        self.start_generation()

    def start_generation(self) -> None:
        self._scale = -1
        self._map: Tensor | None = None

    def scores(self, step: Step) -> Tensor | None:
        return None if self._map is None or step.scale != self._scale else self._map[: step.samples]

    def observe(self, step: Step, outcome: Outcome) -> None:
        if outcome.kept is None and outcome.entropy is not None:
            self._scale, self._map = step.scale, outcome.entropy.mean(1)
