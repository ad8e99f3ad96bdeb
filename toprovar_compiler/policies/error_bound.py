"""The average-case error bound of appendix A.5, evaluated from what was pruned.

It is the paper's formula, under the paper's assumptions, and no guarantee. Its scale term does not follow
from them (A.5.1 uses both ``rho_s <= rho_D`` and its opposite), and its shares are not small by themselves:
pruning every Detail layer gives gamma_s near 1, and pruning the tokens of highest entropy gives a gamma of at
least the share of tokens pruned. Show it beside a measured error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from toprovar_compiler.errors import KernelInputError, OptionError


class ErrorBound(NamedTuple):
    """The terms of the global bound (A.5.4), each a squared norm.

    Attributes:
        scale: ``(1 - rho_D) F``, of scales that were not run.
        layer: ``sum_s gamma_s G_s``, of layers that were pruned.
        token: ``gamma H``, of tokens that were pruned.
    """

    scale: float
    layer: float
    token: float

    @property
    def total(self) -> float:
        return self.scale + self.layer + self.token


def error_bound(
    *,
    rho: float | None,
    picture_energy: float,
    layer_shares: Sequence[float],
    layer_energies: Sequence[float],
    token_share: float,
    token_energy: float,
) -> ErrorBound:
    """E_total <= (1 - rho_D) F + sum_s gamma_s G_s + gamma H (A.5.4, the last equation numbered 10).

    With energies of 1 the terms are the shares of energy that may be lost.

    Args:
        rho: rho_D of eq. 3 at the scale after which no more were run; None where all were run, whose scale
            error is 0 (E_scale is an empty sum).
        picture_energy: F, the squared norm of the full representation Z.
        layer_shares: gamma_s of eq. 22 for every scale with pruned layers, see :func:`pruned_score_share`.
        layer_energies: G_s of eq. 20 for the same scales, the squared norm of the last layer's output.
        token_share: gamma of eq. 27, see :func:`pruned_entropy_share`; 0 where no token was pruned.
        token_energy: H of eq. 23, the sum of the squared norms of the tokens.

    Raises:
        OptionError: a share outside [0, 1], an energy that is negative or not finite, or not one energy for
            each layer share.
    """
    if len(layer_shares) != len(layer_energies):
        raise OptionError(
            f"error_bound requires one layer energy for each layer share, got {len(layer_energies)} for "
            f"{len(layer_shares)}; give both for the same scales"
        )
    scale_share = 0.0 if rho is None else 1.0 - _share("rho", rho)
    layer_terms = [
        _share(f"layer_shares[{i}]", share) * _energy(f"layer_energies[{i}]", energy)
        for i, (share, energy) in enumerate(zip(layer_shares, layer_energies, strict=True))
    ]
    return ErrorBound(
        scale_share * _energy("picture_energy", picture_energy),
        math.fsum(layer_terms),
        _share("token_share", token_share) * _energy("token_energy", token_energy),
    )


def pruned_score_share(scores: Tensor, pruned: Tensor) -> Tensor:
    """gamma_s of eq. 22: the share of the layers' representation scores that pruned layers hold.

    Where all scores are 0 it is the share of layers.

    Args:
        scores: R of eq. 4, ``[..., L]`` floating, at least 0.
        pruned: ``[..., L]`` bool, True for the layers in L_pruned.

    Returns:
        ``[...]`` float64 in [0, 1]; NaN where a score is not finite.

    Raises:
        KernelInputError: no layers, or other shapes or dtypes.
    """
    if pruned.dtype != torch.bool or pruned.shape != scores.shape:
        raise KernelInputError(
            f"pruned_score_share requires a bool mask of the scores' shape {list(scores.shape)}, got "
            f"{pruned.dtype} of {list(pruned.shape)}; give one truth value for each layer"
        )
    return _share_of("pruned_score_share", scores, pruned)


def pruned_entropy_share(entropy: Tensor, kept: Tensor) -> Tensor:
    """gamma of eq. 27: the sum of normalised entropies (eq. 5) of the tokens that were pruned.

    Pruned tokens have no entropy of their own; pass the map that they were ranked by, if it is one of
    entropies (z-scores have no sum to normalise by). Where all entropies are 0 it is the share of tokens.

    Args:
        entropy: ``[B, N]`` floating, at least 0 (less is taken for rounding, as 0).
        kept: ``[B, K]`` int64, distinct tokens of each row, within N.

    Returns:
        ``[B]`` float64 in [0, 1]; NaN where an entropy is not finite.

    Raises:
        KernelInputError: no tokens, or other shapes or dtypes.
    """
    if entropy.dim() != 2 or kept.dim() != 2 or kept.shape[0] != entropy.shape[0]:
        raise KernelInputError(
            f"pruned_entropy_share requires entropies [B, N] and kept tokens [B, K] of the same rows, got "
            f"{list(entropy.shape)} and {list(kept.shape)}; give the kept tokens of each row"
        )
    if kept.dtype != torch.int64:
        raise KernelInputError(
            f"pruned_entropy_share requires kept tokens as int64 indices, got {kept.dtype}; "
            "pass the index of the gate"
        )
    pruned = torch.ones(entropy.shape, dtype=torch.bool, device=entropy.device).scatter(-1, kept, False)
    return _share_of("pruned_entropy_share", entropy, pruned)


def _share_of(name: str, weights: Tensor, pruned: Tensor) -> Tensor:
    """The share of weights [..., n] under the mask, float64 [...]."""
    if weights.dim() < 1 or weights.shape[-1] < 1 or not weights.dtype.is_floating_point:
        raise KernelInputError(
            f"{name} requires floating numbers [..., n] with n of at least 1, got {weights.dtype} of "
            f"{list(weights.shape)}; leave out what has none"
        )
    weights = weights.double().clamp_min(0.0)
    # Equal weights, however small, give the share of places: so do weights that are all zero.
    weights = torch.where(weights.sum(-1, keepdim=True) == 0.0, 1.0, weights)
    lost = torch.where(pruned, weights, 0.0).sum(-1) / weights.sum(-1)
    # One that is infinite makes the sum of all infinite, and the share of the others 0.
    return torch.where(weights.isfinite().all(-1), lost.clamp(0.0, 1.0), math.nan)


def _share(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise OptionError(f"{name} requires a number in [0, 1], got {value}; pass a share of what was there")
    return value


def _energy(name: str, value: float) -> float:
    if not (value >= 0.0 and math.isfinite(value)):
        raise OptionError(f"{name} requires a finite number of at least 0, got {value}; pass a squared norm")
    return value
