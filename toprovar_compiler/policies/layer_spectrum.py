"""The layer dimension: the principal component ratio of entropy maps.

The paper takes the singular values of the entropy map as it is (:func:`raw_spectrum`). Entropies are
positive and near their mean, so sigma_1 of that is the mean, nearly; :func:`centred_spectrum` takes the
mean away first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from toprovar_compiler.errors import KernelInputError

# The Gram matrix is squared 4 x 4 times and rescaled before each 4: that gives its power p = 2^16, where
# iterating on two vectors would take 65536 steps. On n rows or columns, whatever the gaps between singular
# values, what is left of the others moves one by less than a fraction (2 log n + log 2p + 1) / 4p of it, 1e-4
# for n = 256. Without rescaling, 4 squarings bring a largest eigenvalue of 1/n to n^-16: no underflow.
_ROUNDS = 4
_SQUARINGS = 4


class Spectrum(NamedTuple):
    """Of each map: sigma_1, sigma_2 and the ratio of the two, ``[...]`` float64 each.

    ``ratio`` is at least 1. It is infinite where sigma_2 is no more than the rounding of the map's own
    numbers, that is for maps of rank one or zero: they show no second component, so their layer is Global
    and is kept. For a map with NaN or infinity all three are NaN.
    """

    first: Tensor
    second: Tensor
    ratio: Tensor


def raw_spectrum(maps: Tensor) -> Spectrum:
    """sigma_1, sigma_2 and varrho = sigma_1 / sigma_2 (section 4) of the maps as they are, as in the paper.

    All maps are computed together, in matrix products alone, with no LAPACK call and nothing read back to
    the host. Singular values are within 1e-4 of theirs, and within rounding unless two nearly coincide.

    Args:
        maps: ``[..., H, W]`` float32 or float64, averaged over heads; ``[L, H, W]`` for L layers.

    Raises:
        KernelInputError: a wrong rank or dtype, or an empty map.
    """
    _check_maps("raw_spectrum", maps)
    return _spectrum(maps, maps.double())


def centred_spectrum(maps: Tensor) -> Spectrum:
    """What :func:`raw_spectrum` gives, of each map less its mean. Not in the paper.

    Args:
        maps: as for :func:`raw_spectrum`.

    Raises:
        KernelInputError: a wrong rank or dtype, or an empty map.
    """
    _check_maps("centred_spectrum", maps)
    # The minimum goes first: a constant map becomes exactly zero, not the rounding of its mean.
    above_least = maps.double()
    above_least = above_least - above_least.amin((-2, -1), keepdim=True)
    return _spectrum(maps, above_least - above_least.mean((-2, -1), keepdim=True))


def _spectrum(maps: Tensor, matrices: Tensor) -> Spectrum:
    """The spectrum of ``matrices`` [..., H, W] float64, which were made from ``maps``."""
    # Float64 throughout: autocast and TF32 leave it alone, and the Gram matrix squares the ratio.
    largest = matrices.abs().amax((-2, -1), keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    matrices = matrices / unit
    if matrices.shape[-2] < matrices.shape[-1]:
        matrices = matrices.mT
    one, rest = _split_dominant(matrices)
    # From the matrix, not from its Gram matrix, in which a small sigma_2 would be lost beside sigma_1.
    other, _ = _split_dominant(rest)
    one, other = one * unit[..., 0, 0], other * unit[..., 0, 0]
    first, second = torch.maximum(one, other), torch.minimum(one, other)
    rounding = max(maps.shape[-2:]) * torch.finfo(maps.dtype).eps * maps.double().flatten(-2).norm(dim=-1)
    return Spectrum(first, second, torch.where(second <= rounding, math.inf, first / second))


def _split_dominant(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The largest singular value [...] of matrices [..., m, n], and the matrices without its component.

    Where singular values coincide, any vector of their common space is as good as another.
    """
    least = torch.finfo(matrices.dtype).tiny
    power = matrices.mT @ matrices
    for _ in range(_ROUNDS):
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        power = power / trace.clamp_min(least)
        for _ in range(_SQUARINGS):
            power = power @ power
    # The columns of a high power are multiples of the dominant vector; the largest is never near zero.
    column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    vector = power.take_along_dim(column, dim=-1)
    vector = vector / vector.norm(dim=-2, keepdim=True).clamp_min(least)
    image = matrices @ vector
    return image.flatten(-2).norm(dim=-1), matrices - image @ vector.mT


def _check_maps(name: str, maps: Tensor) -> None:
    if maps.dim() < 2 or 0 in maps.shape[-2:]:
        raise KernelInputError(
            f"{name} requires maps [..., H, W] of at least one token, got {list(maps.shape)}; "
            "give the token grid its height and width"
        )
    if maps.dtype not in (torch.float32, torch.float64):
        raise KernelInputError(
            f"{name} requires maps of float32 or float64, got {maps.dtype}; "
            "convert the entropies before they are averaged over heads"
        )
