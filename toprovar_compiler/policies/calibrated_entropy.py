"""Ranks tokens by what calibration learned of the entropies of single heads and layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.calibration import Gate
from toprovar_compiler.policies.entropy_source import BaseSource, resize
from toprovar_compiler.policies.late_flag import LateFlag


class _Map(NamedTuple):
    """A layer's entropies [samples, H, K] of its ``kept`` tokens [samples, K], or of all, over ``keys``."""

    entropy: Tensor
    kept: Tensor | None
    keys: int

    def of(self, wanted: Tensor | None, tokens: int) -> Tensor:
        """The entropies of the tokens ``wanted`` [samples, k], all of which the layer computed."""
        entropy = self.entropy
        if wanted is None or (self.kept is not None and self.kept.shape == wanted.shape):
            return entropy
        if self.kept is not None:
            everywhere = entropy.new_zeros(*entropy.shape[:2], tokens)
            entropy = everywhere.scatter(-1, self.kept[:, None].expand_as(entropy), entropy)
        return entropy.gather(-1, wanted[:, None].expand(-1, entropy.shape[1], -1))


def _shares(entropies: list[Tensor], keys: list[int]) -> Tensor:
    """Of each layer's entropies [samples, H, n], over the largest that so many keys allow."""
    # [samples, L, H, n]
    largest = [math.log(max(number, 2)) for number in keys]
    if len(set(largest)) == 1:  # as it is where all layers are pruned alike: one division on the device
        return torch.stack(entropies, 1) / largest[0]
    return torch.stack([entropy / most for entropy, most in zip(entropies, largest, strict=True)], 1)


class CalibratedEntropy(BaseSource):
    """The importance that the previous scale's entropies predict, see :class:`Gate`; most important kept.

    Low entropy means "important" in some heads and "unimportant" in others, so that their mean says little:
    the calibrated weights have signs (docs/decisions/0007). A token that did not run keeps what an earlier
    scale predicted of its place. One ranking for all layers of a scale, per sample: a picture is ranked in a
    batch as it is alone. Layers may keep different numbers of tokens by it; those that all layers ran, which
    are those of the layer that kept fewest, get a new prediction.
    """

    reads_entropy = True

    def __init__(self, gates: Mapping[int, Gate]) -> None:
        self._gates = gates
        self._tensors: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        self._finite = LateFlag()
        self.start_generation()

    def start_generation(self) -> None:
        self._step: Step | None = None
        self._maps: dict[int, _Map] = {}
        self._importance: Tensor | None = None
        self.missing: str | None = "no entropy map of an earlier scale that the calibration has a gate for"

    def scores(self, step: Step) -> Tensor | None:
        self._advance(step)
        if self._importance is None:
            return None
        return self._resized(-self._importance[: step.samples].float(), step.tokens)

    def observe(self, step: Step, outcome: Outcome) -> None:
        self._advance(step)
        if outcome.entropy is None or step.scale not in self._gates:
            return
        self._step = step
        self._maps[step.layer] = _Map(outcome.entropy[: step.samples], outcome.kept, outcome.keys)

    def complaints(self) -> list[str]:
        if not self._finite.failed():
            return []
        return ["an entropy map was not finite: it was left out of the ranking"]

    def _advance(self, step: Step) -> None:
        """At a new scale: predict from all layers of the scale that ended."""
        ended = self._step
        if ended is None or ended.scale == step.scale:
            return
        maps, self._maps, self._step = self._maps, {}, None
        gate = self._gates[ended.scale]
        heads = {found.entropy.shape[1] for found in maps.values()}
        in_full = {found.entropy.shape[2] for found in maps.values() if found.kept is None}
        if len(maps) != len(gate.weights) or heads != {len(gate.weights[0])} or len(in_full) > 1:
            self.missing = (
                f"the calibration requires entropies of {len(gate.weights)} layers of {len(gate.weights[0])} "
                f"heads over the same tokens, got {len(maps)} layers of {sorted(heads)} heads"
            )
            self._importance = None
            return
        self._importance = self._predict(ended, [maps[layer] for layer in sorted(maps)])

    def _predict(self, ended: Step, maps: list[_Map]) -> Tensor | None:
        pruned = [found.kept for found in maps if found.kept is not None]
        kept = min(pruned, key=lambda tokens: tokens.shape[-1], default=None)
        stacked = _shares([found.of(kept, ended.tokens) for found in maps], [found.keys for found in maps])
        weights, centre = self._on(ended.scale, stacked.device)
        distance = stacked.double() - centre
        finite = distance.isfinite()
        self._finite.add(finite.all())
        # float64, so that the order of a picture's tokens does not depend on the batch that it is in
        predicted = (torch.where(finite, distance, 0.0) * weights).sum((1, 2)) + self._gates[ended.scale].bias
        if kept is None:
            return predicted
        older = None if self._importance is None else self._resized(self._importance, ended.tokens)
        samples = len(kept)
        return None if older is None else older[:samples].scatter(-1, kept, predicted[:samples])

    def _resized(self, importance: Tensor, tokens: int) -> Tensor | None:
        resized = resize(importance, tokens)
        if resized is None:
            self.missing = "no square token grid"
        return resized

    def _on(self, scale: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Weights and centres ``[L, H, 1]`` float64 on the device."""
        if (scale, device) not in self._tensors:
            gate = self._gates[scale]
            weights, centre = (
                torch.tensor(rows, dtype=torch.float64, device=device)[..., None]
                for rows in (gate.weights, gate.centre)
            )
            self._tensors[scale, device] = weights, centre
        return self._tensors[scale, device]
