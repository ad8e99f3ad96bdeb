"""How far a picture is from the dense one of the same seed: as a whole, and region by region."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toprovar_compiler.errors import MissingDependencyError

try:
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )
except ImportError as import_error:
    raise MissingDependencyError(
        "SSIM and MS-SSIM require torchmetrics, got none; install it with: "
        "pip install 'toprovar-compiler[evaluation]'"
    ) from import_error

REGIONS = ("inside", "contours", "background")
CONTOUR_PIXELS = 3
"""A contour reaches this far to both sides of a sprite's edge: one token of a 32 x 32 grid is 8 pixels."""
SSIM_SIDE = 6
"""Smallest side that the 11 x 11 window, mirrored at the edges, can stand on."""
MS_SSIM_SIDE = 176
"""Smallest side of which the fifth scale, a sixteenth, is larger than that window."""


def compare(pictures: Tensor, dense: Tensor, foreground: Tensor | None) -> list[dict[str, Any]]:
    """One record per picture; SSIM has the usual 11 x 11 Gaussian window.

    Args:
        pictures, dense: [B, 3, H, W] float32 in [0, 1].
        foreground: [B, H, W] bool, the dense pictures' sprites; None where nobody knows them.

    Returns:
        ``mse`` (over pixels and colours), ``energy`` of the dense picture (its variance over the same),
        ``ssim`` and ``ms_ssim`` (None for pictures that are too small),
        and per region, where ``foreground`` is given, ``pixels`` and the sums over them of the squared error
        and of the SSIM map. Over all regions these add up to the whole picture's.
    """
    errors = (pictures - dense).square().mean(1).double()
    equal = errors.amax((1, 2)) == 0
    similarity = _similarity(pictures, dense, equal)
    ssim = [None] * len(pictures) if similarity is None else similarity.mean((1, 2)).tolist()
    energy = dense.double().flatten(1).var(1, correction=0).tolist()
    columns = (errors.mean((1, 2)).tolist(), energy, ssim, _multiscale(pictures, dense, equal))
    names = ("mse", "energy", "ssim", "ms_ssim")
    records: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    if foreground is not None:
        for record, regions in zip(records, _by_region(errors, similarity, foreground), strict=True):
            record["regions"] = regions
    return records


def _similarity(pictures: Tensor, dense: Tensor, equal: Tensor) -> Tensor | None:
    """SSIM maps [B, H, W] float64; 1 for ``equal`` [B] pairs, where float32 would miss it by 1e-5."""
    if min(pictures.shape[-2:]) < SSIM_SIDE:
        return None
    maps = structural_similarity_index_measure(
        pictures, dense, data_range=1.0, reduction="none", return_full_image=True
    )[1]
    return torch.where(equal[:, None, None], 1.0, maps.mean(1).double())


def _multiscale(pictures: Tensor, dense: Tensor, equal: Tensor) -> list[float] | list[None]:
    """MS-SSIM of each pair; 1 for ``equal`` [B] pairs."""
    if min(pictures.shape[-2:]) < MS_SSIM_SIDE:
        return [None] * len(pictures)
    values = multiscale_structural_similarity_index_measure(pictures, dense, data_range=1.0, reduction="none")
    numbers: list[float] = torch.where(equal, 1.0, values.reshape(-1).double()).tolist()
    return numbers


def regions_of(foreground: Tensor) -> Tensor:
    """Masks [3, B, H, W] bool of :data:`REGIONS` from sprites [B, H, W]; every pixel is in just one."""
    window = 2 * CONTOUR_PIXELS + 1
    sprites = foreground.float()[:, None]
    grown = F.max_pool2d(sprites, window, 1, CONTOUR_PIXELS)[:, 0] > 0
    kept = F.max_pool2d(1 - sprites, window, 1, CONTOUR_PIXELS)[:, 0] == 0
    return torch.stack([kept, grown & ~kept, ~grown])


def _by_region(errors: Tensor, similarity: Tensor | None, foreground: Tensor) -> list[dict[str, Any]]:
    """Per picture: region -> its pixels, and sums over them."""
    masks = regions_of(foreground)
    pixels = masks.sum((2, 3)).T.tolist()
    squares = (errors * masks).sum((2, 3)).T.tolist()
    if similarity is None:
        similarities = [[None] * len(REGIONS)] * len(errors)
    else:
        similarities = (similarity * masks).sum((2, 3)).T.tolist()
    return [
        {
            name: {"pixels": p, "squares": s, "similarity": m}
            for name, p, s, m in zip(REGIONS, *columns, strict=True)
        }
        for columns in zip(pixels, squares, similarities, strict=True)
    ]
