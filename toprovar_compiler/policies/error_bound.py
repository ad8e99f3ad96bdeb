"""The average-case error bound of appendix A.5, from what a generation pruned.

It is the paper's formula under the paper's assumptions, and no guarantee: show it beside a measured error.
The reading implemented here takes every energy (F, G_s, H) as 1, so that the terms are shares of the energy
that may be lost; a share of 1 or more says nothing. What the paper leaves open or contradicts:

- The scale term does not follow from eq. 12 (A.5.1 uses both ``rho_s <= rho_D`` and its opposite), and
  ``rho_D <= tau`` bounds it from below, not from above. It is taken where scales were not run at all; tokens
  that leave a scale are tokens.
- gamma_s (eq. 22) is backwards: it is the share of R in pruned layers, which are the layers of large R. Where
  all Detail layers are pruned it is near 1, however few tokens they lose. A layer that ran any token less is
  one of them.
- gamma (eq. 27) is at least the share of pruned tokens where those of highest entropy are pruned. Pruned
  tokens have no entropy of their own: it is taken from the layer's map of the last scale before pruning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.entropy_source import resize
from toprovar_compiler.policies.layer_classes import representation_scores
from toprovar_compiler.policies.scale_depth import low_entropy_ratio

Kept = Mapping[int, Sequence[tuple[int, Tensor | None]]]
"""Per scale and layer: N, and the kept tokens [samples, K]; None where all ran, K = 0 where none did."""


@dataclass(frozen=True)
class ErrorBound:
    """The terms of the last equation of A.5.4 with unit energies; means over the samples of a batch.

    Attributes:
        rho: rho_D of eq. 3, of the last scale before pruning, averaged over layers and heads.
        scale: 1 - rho_D where scales were not run, else 0 (E_scale is an empty sum).
        layer_shares: gamma_s of eq. 22 by scale.
        token: gamma of eq. 27, the mean over pruned blocks, weighted by their tokens.
    """

    rho: float
    scale: float
    layer_shares: Mapping[int, float]
    token: float

    @property
    def layer(self) -> float:
        """The sum of gamma_s."""
        return math.fsum(self.layer_shares.values())

    @property
    def total(self) -> float:
        return self.scale + self.layer + self.token

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the attributes, and ``layer`` and ``total``."""
        shares = {str(scale): share for scale, share in self.layer_shares.items()}
        return {**asdict(self), "layer_shares": shares, "layer": self.layer, "total": self.total}

    def __str__(self) -> str:
        return (
            f"error bound of A.5, in shares of the energy: scale {self.scale:.2f} + layers {self.layer:.2f} "
            f"+ tokens {self.token:.2f} = {self.total:.2f}"
        )


class FullMaps:
    """Entropies of the last scale that ran in full before anything was pruned; nothing is computed."""

    def __init__(self) -> None:
        self.start_generation()

    def start_generation(self) -> None:
        self._maps: dict[int, dict[int, Tensor]] = {}
        self._done = False

    def observe(self, step: Step, outcome: Outcome) -> None:
        self._done = self._done or outcome.kept is not None
        if self._done or outcome.entropy is None:
            return
        if step.scale not in self._maps:
            # Global layers may run before a scale's first pruned layer: the scale before is still needed.
            self._maps = {scale: maps for scale, maps in self._maps.items() if scale == step.scale - 1}
        self._maps.setdefault(step.scale, {})[step.layer] = outcome.entropy[: step.samples]

    def of(self, scale: int) -> list[Tensor]:
        maps = self._maps.get(scale, {})
        return [maps[layer] for layer in sorted(maps)]


def error_bound(
    kept: Kept, maps_of: Callable[[int], Sequence[Tensor]], options: Options
) -> ErrorBound | None:
    """E_total <= (1 - rho_D) F + sum_s gamma_s G_s + gamma H (A.5.4) with F = G_s = H = 1.

    Args:
        kept: of the whole generation.
        maps_of: entropies [samples, H, N] of every layer of a scale that ran in full.
        options: beta of eq. 4 and the map that R is taken from.

    Returns:
        None where all tokens ran, or without finite maps of all layers on a square grid.
    """
    pruned = {scale: calls for scale, calls in kept.items() if any(index is not None for _, index in calls)}
    depth = min(pruned, default=0) - 1
    of_layers = [entropy.double().mean(1) for entropy in maps_of(depth)] if depth >= 0 else []
    if not of_layers or any(len(calls) != len(of_layers) for calls in pruned.values()):
        return None
    maps = torch.stack(of_layers, 1)  # [samples, L, N]
    if any(resize(maps, calls[0][0]) is None for calls in pruned.values()):
        return None
    scores = representation_scores(maps, options)
    rho = float(low_entropy_ratio(maps.mean(1)).mean())
    left_out = {scale for scale, calls in pruned.items() if all(_runs_nothing(index) for _, index in calls)}
    shares, lost, tokens = {}, 0.0, 0
    for scale in sorted(pruned.keys() - left_out):
        groups = _same_tokens(pruned[scale])
        shares[scale] = float(_share(scores, sorted(chain.from_iterable(groups))).mean())
        for layers in groups:
            count, index = pruned[scale][layers[0]]
            assert index is not None, "only pruned layers are listed"
            lost += count * float(_lost_entropy(maps[: len(index), layers], count, index).mean(0).sum())
            tokens += count * len(layers)
    bound = ErrorBound(rho, 1.0 - rho if left_out else 0.0, shares, lost / tokens if tokens else 0.0)
    return bound if math.isfinite(bound.total) and math.isfinite(rho) else None


def _same_tokens(calls: Sequence[tuple[int, Tensor | None]]) -> list[list[int]]:
    """The pruned layers of a scale, those together that were given one and the same index."""
    groups: dict[int, list[int]] = {}
    for layer, (_, index) in enumerate(calls):
        if index is not None:
            groups.setdefault(id(index), []).append(layer)
    return list(groups.values())


def _runs_nothing(index: Tensor | None) -> bool:
    return index is not None and index.shape[-1] == 0


def _share(scores: Tensor, layers: list[int]) -> Tensor:
    """gamma_s [samples]: the share of R [samples, L] in these layers; of the layers where all R are 0."""
    scores = torch.where(scores.sum(-1, keepdim=True) == 0.0, 1.0, scores)
    return scores[:, layers].sum(-1) / scores.sum(-1)


def _lost_entropy(entropy: Tensor, tokens: int, kept: Tensor) -> Tensor:
    """gamma [samples, L] of blocks: the sum of eq. 5 over the tokens that are not kept [samples, K].

    ``entropy`` [samples, L, n] is of another scale; where all of it is 0 it is the share of tokens.
    """
    weights = resize(entropy, tokens)
    assert weights is not None, "the caller checked the grids"
    weights = torch.where(weights.sum(-1, keepdim=True) == 0.0, 1.0, weights)
    of_layers = kept[:, None].expand(-1, weights.shape[1], -1)
    return 1.0 - weights.gather(-1, of_layers).sum(-1) / weights.sum(-1)
