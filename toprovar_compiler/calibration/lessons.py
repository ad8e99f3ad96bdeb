"""What dense pictures teach: the moments of the gates' fits, statistics of scales, FLOPs; batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from toprovar_compiler.calibration.budgets import FlopsModel
from toprovar_compiler.calibration.importance import RIDGE, importance
from toprovar_compiler.errors import EvaluationError
from toprovar_compiler.policies.calibration import Gate
from toprovar_compiler.policies.gate_fit import GateFit, Moments
from toprovar_compiler.policies.scale_depth import low_entropy_ratio
from toprovar_compiler.schedule import grid_of

_FEWEST_TOKENS = 16  # of a scale whose entropies can say anything about places
_FLOPS, _SHAPE, _STATISTICS, _MAPS = "flops", "shape", "statistics", "maps"


def lesson(entropies: Mapping[int, Tensor], pictures: Tensor, flops: Sequence[int]) -> dict[str, Tensor]:
    """One batch's own sums, as named tensors.

    Args:
        entropies: scale -> shares of the largest entropy, [B, L, H, N].
        pictures: [B, 3, H, W].
        flops: of each scale of the schedule, 0 where it did not run compiled.

    Raises:
        EvaluationError: an entropy is not finite.
    """
    last = len(flops) - 1
    part = {_FLOPS: torch.tensor(flops, dtype=torch.int64)}
    for scale, shares in entropies.items():
        _, layers, heads, tokens = shares.shape
        maps = shares.double().mean((1, 2))
        if not bool(maps.isfinite().all()):
            raise EvaluationError(
                f"calibration requires finite entropies, got NaN or infinity at scale {scale}; "
                "try another --dtype"
            )
        part[f"{scale}.{_STATISTICS}"] = torch.stack([maps.mean(1), low_entropy_ratio(maps)])
        part[f"{scale}.{_MAPS}"] = shares[0].double().mean(1)
        wanted = importance(pictures, tokens)
        if wanted is None or tokens < _FEWEST_TOKENS or scale == last:
            continue
        fit = GateFit(layers, heads, shares.device)
        fit.add(shares, wanted)
        part[f"{scale}.{_SHAPE}"] = torch.tensor([layers, heads])
        part.update({f"{scale}.{name}": value for name, value in fit.moments._asdict().items()})
    return part


class Lessons:
    """The lessons of all batches. Added in the batches' order they give the same numbers, bit for bit,
    whichever processes painted them.

    Args:
        schedule: tokens of each scale.
    """

    def __init__(self, schedule: Sequence[int]) -> None:
        self.schedule = tuple(schedule)
        self._fits: dict[int, GateFit] = {}
        self._statistics: dict[int, list[Tensor]] = {}
        self._flops = torch.zeros(len(schedule), dtype=torch.int64)
        self.maps: dict[int, Tensor] = {}
        """scale -> [L, N] float64, the first picture's shares of each layer, averaged over heads."""

    def add(self, part: Mapping[str, Tensor]) -> None:
        """The next batch's lesson.

        Raises:
            KeyError, RuntimeError, ValueError: no lesson of this model.
        """
        flops = part[_FLOPS]
        if flops.shape != self._flops.shape or bool((flops < 0).any()):
            raise ValueError(f"FLOPs {flops.tolist()} of a schedule of {len(self.schedule)} scales")
        self._flops += flops
        for scale, tokens in enumerate(self.schedule):
            if f"{scale}.{_STATISTICS}" not in part:
                continue
            pair = part[f"{scale}.{_STATISTICS}"]
            maps = part[f"{scale}.{_MAPS}"]
            if pair.dim() != 2 or len(pair) != 2 or maps.shape[1:] != (tokens,):
                raise ValueError(f"statistics {list(pair.shape)}, maps {list(maps.shape)} of scale {scale}")
            self._statistics.setdefault(scale, []).append(pair)
            self.maps.setdefault(scale, maps)
            if f"{scale}.{_SHAPE}" in part:
                self._merge(scale, part)

    def _merge(self, scale: int, part: Mapping[str, Tensor]) -> None:
        layers, heads = part[f"{scale}.{_SHAPE}"].tolist()
        moments = Moments(*(part[f"{scale}.{name}"] for name in Moments._fields))
        fit = self._fits.setdefault(scale, GateFit(layers, heads, moments.mean.device))
        if [m.shape for m in moments] != [m.shape for m in fit.moments]:
            raise ValueError(f"moments {[list(m.shape) for m in moments]} of scale {scale}")
        fit.merge(moments)

    def gates(self) -> dict[int, Gate]:
        """scale -> the gate that ranks the tokens of the next scale."""
        return {scale: fit.solve(RIDGE) for scale, fit in sorted(self._fits.items()) if fit.tokens > 1}

    def flops(self) -> FlopsModel:
        """What a token costs.

        Raises:
            UnsupportedModelError: fewer than three scales run compiled.
        """
        counted = {scale: spent for scale, spent in enumerate(self._flops.tolist()) if spent}
        return FlopsModel.of(self.schedule, counted)

    def of_pictures(self) -> dict[int, Tensor]:
        """scale -> [2, pictures] float64: each picture's mean entropy as a share of the largest, and its
        low-entropy ratio rho (eq. 3)."""
        return {scale: torch.cat(parts, 1) for scale, parts in sorted(self._statistics.items())}

    def statistics(self) -> list[dict[str, float]]:
        """The means over pictures, a row per scale."""
        return [
            {"scale": scale, "mean_entropy_share": mean, "low_entropy_ratio": ratio}
            for scale, pair in self.of_pictures().items()
            for mean, ratio in [pair.mean(1).tolist()]
        ]

    def representative(self) -> tuple[int, Tensor] | None:
        """The finest scale whose maps lie on a square grid, and its :attr:`maps` as [L, side, side]."""
        for scale in sorted(self.maps, reverse=True):
            grid = grid_of(self.schedule[scale])
            if grid is not None:
                return scale, self.maps[scale].unflatten(1, grid)
        return None
