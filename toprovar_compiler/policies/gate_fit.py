"""Fits a gate: ridge regression from the entropies of all heads and layers to how much each token matters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from toprovar_compiler.policies.calibration import Gate, Rows

_LEAST_SPREAD = 1e-6  # of a head's entropy as a share of the largest; float32 rounds at a tenth of it


def standardised(strength: Tensor) -> Tensor:
    """z-scores ``[B, N]`` float64 of each picture's strengths ``[B, N]``, N >= 2; 0 where all are alike."""
    spread, centre = torch.std_mean(strength.double(), dim=1, keepdim=True)
    return (strength.double() - centre) / spread.clamp_min(torch.finfo(torch.float32).tiny)


class Moments(NamedTuple):
    """Of tokens' entropies and what is predicted, C = L * H + 1 columns; all float64.

    Attributes:
        tokens: [], how many.
        mean: [C].
        scatter: [C, C], sums of products of distances to the mean.
    """

    tokens: Tensor
    mean: Tensor
    scatter: Tensor


class GateFit:
    """The moments that a regression needs, of tokens that come in parts.

    Args:
        layers, heads: L and H.
        device: of the entropies.
    """

    def __init__(self, layers: int, heads: int, device: torch.device) -> None:
        self.layers, self.heads = layers, heads
        columns = layers * heads + 1  # the entropies, and what is predicted
        self._moments = Moments(
            torch.zeros((), dtype=torch.float64, device=device),
            torch.zeros(columns, dtype=torch.float64, device=device),
            torch.zeros(columns, columns, dtype=torch.float64, device=device),
        )

    def add(self, entropies: Tensor, wanted: Tensor) -> None:
        """Entropies ``[B, L, H, N]`` as shares of the largest, wanted ``[B, N]``.

        Tokens with numbers that are not finite are left out. Nothing is read back to the host.
        """
        rows = entropies.double().flatten(1, 2).transpose(1, 2).flatten(0, 1)
        table = torch.cat([rows, wanted.double().reshape(-1, 1)], 1)
        finite = table.isfinite().all(1, keepdim=True)
        table = torch.where(finite, table, 0.0)
        count = finite.sum().double()
        mean = table.sum(0) / count.clamp_min(1)
        centred = torch.where(finite, table - mean, 0.0)
        self.merge(Moments(count, mean, centred.t() @ centred))

    def merge(self, other: Moments) -> None:
        """Add tokens summed up elsewhere; the same parts in the same order give the same numbers."""
        count, mean, scatter = self._moments
        total = (count + other.tokens).clamp_min(1)
        # Moments about the mean are merged: raw ones would lose a head that varies little to rounding.
        step = other.mean - mean
        between = torch.outer(step, step) * (count * other.tokens / total)
        self._moments = Moments(
            count + other.tokens, mean + step * (other.tokens / total), scatter + other.scatter + between
        )

    @property
    def moments(self) -> Moments:
        """Of all that was added."""
        return self._moments

    @property
    def tokens(self) -> int:
        """How many were added."""
        return int(self._moments.tokens)

    def solve(self, ridge: float) -> Gate:
        """The gate of least squares plus ``ridge`` times the squares of the standardised weights, per token.

        Heads that do not vary get no weight. Needs a token at least.
        """
        count, mean, scatter = self._moments
        covariance, means = (scatter / count).cpu(), mean.cpu()
        spread = covariance.diagonal()[:-1].sqrt()
        varies = spread > _LEAST_SPREAD
        unit = torch.where(varies, spread, 1.0)
        among = torch.where(varies[:, None] & varies, covariance[:-1, :-1] / unit[:, None] / unit, 0.0)
        towards = torch.where(varies, covariance[:-1, -1] / unit, 0.0)
        standard = torch.linalg.solve(among + ridge * torch.eye(len(unit), dtype=torch.float64), towards)
        error = covariance[-1, -1] - 2 * standard @ towards + standard @ among @ standard
        total = float(covariance[-1, -1])
        return Gate(
            weights=self._rows(standard / unit),
            centre=self._rows(means[:-1]),
            bias=float(means[-1]),
            explained=1 - float(error) / total if total > 0 else 0.0,
        )

    def _rows(self, values: Tensor) -> Rows:
        return tuple(tuple(row) for row in values.reshape(self.layers, self.heads).tolist())
