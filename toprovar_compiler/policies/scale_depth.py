"""The scale dimension: the low-entropy ratio of a scale and the depth at which pruning starts.

The paper contradicts itself on which way rho_s crosses tau: ``rho_s >= tau`` in section 4 and A.2,
``rho_s <= tau`` in A.5.1 (eq. 13). Both are here, and the caller chooses.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from toprovar_compiler.errors import KernelInputError, OptionError
from toprovar_compiler.options import Crossing


def low_entropy_ratio(entropy: Tensor) -> Tensor:
    """rho_s of eq. 3, the share of a scale's tokens whose entropy lies below the mean of the scale.

    A map of equal entropies has a ratio of 0; no map reaches 1. A map with NaN or infinity has NaN, which
    no threshold is reached by. Nothing is read back to the host.

    Args:
        entropy: ``[..., N]`` floating, entropies of one scale, averaged over heads (and over layers, for one
            ratio per sample).

    Returns:
        ``[...]`` float64; stack those of the scales in the last dimension for :func:`start_depth`.

    Raises:
        KernelInputError: no token dimension, no tokens, or not floating.
    """
    if entropy.dim() < 1 or entropy.shape[-1] < 1:
        raise KernelInputError(
            "low_entropy_ratio requires entropies [..., N] of at least one token, got "
            f"{list(entropy.shape)}; leave out scales that have no tokens"
        )
    if not entropy.dtype.is_floating_point:
        raise KernelInputError(
            f"low_entropy_ratio requires floating entropies, got {entropy.dtype}; "
            "convert them to torch.float32"
        )
    tokens = entropy.shape[-1]
    # Sums of float32 entropies are all but exact in float64: a sample has the ratio in a batch that it has
    # alone. The distance to the minimum is exactly 0 for equal entropies, and comparing N H_i with the sum
    # needs no division, so that no rounded mean comes to lie above tokens that are equal to it.
    above_least = entropy.double()
    above_least = above_least - above_least.amin(-1, keepdim=True)
    total = above_least.sum(-1, keepdim=True)
    ratio = (above_least * tokens < total).sum(-1).double() / tokens
    return torch.where(total.squeeze(-1).isfinite(), ratio, math.nan)


def start_depth(rho: Tensor, tau: float, crossing: Crossing = "at-least") -> Tensor:
    """D of each sample, the first scale whose rho_s reaches tau (section 4, eq. 13).

    Given the scales that ran so far it answers for those: the depth of the first ``t`` scales is
    ``min(D, t)``. rho_D is known once scale D has run, so what runs next, scale D + 1, is the first that can
    be pruned as a whole; A.5.1 prunes the scales after D, while eq. 6 also prunes scale D.

    Args:
        rho: ``[B, S]`` floating, one row per sample, scales in the order in which they run. Leave out
            those of few tokens, which reach tau by chance.
        tau: threshold in [0, 1], about 0.4 in the paper.
        crossing: the direction of the threshold.

    Returns:
        ``[B]`` int64: D, or S where no scale reaches tau (the fallback of A.5.4: no scale is pruned).

    Raises:
        KernelInputError: rho is not floating, not of rank 2 or has no scales.
        OptionError: tau or crossing is out of range.
    """
    if rho.dim() != 2 or rho.shape[1] < 1 or not rho.dtype.is_floating_point:
        raise KernelInputError(
            f"start_depth requires floating ratios [B, S] of at least one scale, got {list(rho.shape)} of "
            f"{rho.dtype}; stack low_entropy_ratio of each scale in the last dimension"
        )
    _check_threshold(tau, crossing)
    # float64 on both sides: rounded to a lower precision, tau would be reached by ratios that miss it.
    ratios = rho.double()
    reached = ratios >= tau if crossing == "at-least" else ratios <= tau
    scales = torch.arange(rho.shape[1], device=rho.device)
    return torch.where(reached, scales, rho.shape[1]).amin(-1)


def batch_depth(depths: Tensor) -> Tensor:
    """The depth of a batch whose samples run together: that of the sample that starts last.

    No sample is pruned before its own depth; where all agree, the batch does what each would do alone.

    Args:
        depths: ``[B]`` int64, from :func:`start_depth`.

    Returns:
        ``[]`` int64. Reading it is the one host synchronisation that a decision on scales needs.

    Raises:
        KernelInputError: not of rank 1, or no samples.
    """
    if depths.dim() != 1 or depths.shape[0] < 1:
        raise KernelInputError(
            f"batch_depth requires the depths [B] of at least one sample, got {list(depths.shape)}; "
            "pass what start_depth returns"
        )
    return depths.amax()


def _check_threshold(tau: float, crossing: str) -> None:
    if not 0.0 <= tau <= 1.0:
        raise OptionError(f"tau requires a number in [0, 1], got {tau}; the paper's is about 0.4")
    if crossing not in get_args(Crossing):
        listed = " or ".join(repr(choice) for choice in get_args(Crossing))
        raise OptionError(f"crossing requires {listed}, got {crossing!r}; choose one of them")
