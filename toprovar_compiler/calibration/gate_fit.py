"""Fits a gate: ridge regression from the entropies of all heads to the edges of the dense picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from toprovar_compiler.policies.calibration import Gate
from toprovar_compiler.policies.oracle import edge_maps
from toprovar_compiler.schedule import grid_of

RIDGE = 1e-3
"""Penalty on squared standardised weights, per token."""


def importance(pictures: Tensor, tokens: int) -> Tensor | None:
    """What a gate predicts: the edge strength under each token, z-scored over each picture.

    pictures ``[B, 3, H, W]`` -> ``[B, tokens]`` float64, or None where the tokens form no square grid. A
    picture without edges has 0 everywhere.
    """
    grid = grid_of(tokens)
    if grid is None:
        return None
    strength = adaptive_avg_pool2d(edge_maps(pictures), grid).flatten(1).double()
    spread, centre = torch.std_mean(strength, dim=1, keepdim=True)
    return (strength - centre) / spread.clamp_min(torch.finfo(torch.float32).tiny)


class GateFit:
    """The sums that a regression needs; those of several parts of the pictures may be added up."""

    def __init__(self, layers: int, heads: int, device: torch.device) -> None:
        self.layers, self.heads = layers, heads
        size = layers * heads + 2  # the entropies, 1, and what is predicted
        self._moments = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add(self, entropies: Tensor, wanted: Tensor) -> None:
        """Entropies ``[B, L, H, N]`` as shares of the largest, wanted ``[B, N]``; tokens with entropies that
        are not finite are left out."""
        rows = entropies.double().flatten(1, 2).transpose(1, 2).flatten(0, 1)
        table = torch.cat([rows, torch.ones_like(rows[:, :1]), wanted.double().reshape(-1, 1)], 1)
        table = table[table.isfinite().all(1)]
        self._moments += table.t() @ table

    @property
    def tokens(self) -> int:
        """How many were added."""
        return int(self._moments[-2, -2])

    def solve(self) -> Gate:
        """The gate of least squares; needs two tokens at least. Heads that do not vary get no weight."""
        moments = self._moments.cpu() / self._moments[-2, -2].cpu()
        means = moments[-2]
        covariance = moments - means[:, None] * means
        spread = covariance.diagonal()[:-2].clamp_min(0).sqrt()
        varies = spread > torch.finfo(torch.float32).eps
        unit = torch.where(varies, spread, 1.0)
        among = covariance[:-2, :-2] / unit[:, None] / unit
        among += RIDGE * torch.eye(len(unit), dtype=torch.float64)
        towards = torch.where(varies, covariance[:-2, -1] / unit, 0.0)
        standard = torch.where(varies, torch.linalg.solve(among, towards), 0.0)
        weights = standard / unit
        error = (
            covariance[-1, -1] - 2 * weights @ covariance[:-2, -1] + weights @ covariance[:-2, :-2] @ weights
        )
        total = float(covariance[-1, -1])
        return Gate(
            weights=self._rows(weights),
            centre=self._rows(means[:-2]),
            bias=float(means[-1]),
            explained=1 - float(error) / total if total > 0 else 0.0,
        )

    def _rows(self, values: Tensor) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(row) for row in values.reshape(self.layers, self.heads).tolist())
