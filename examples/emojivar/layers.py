"""Small numerical pieces that the transformer and its text encoder share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
ROPE_GRID = 32  # positions of every scale are measured on this common grid
LOWEST_ROPE_CYCLES = 1 / 40  # of the rotation, in half turns per grid cell
HIGHEST_ROPE_CYCLES = 1 / 2


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or untouched where it is float64: norms and quantiser maths never run lower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square normalisation over the last dimension, without weights; at least float32."""
    wide = at_least_float32(x)
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)


def unit(x: Tensor) -> Tensor:
    """``x`` scaled to length one over its last dimension; at least float32."""
    return F.normalize(at_least_float32(x), dim=-1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, N, H * D]`` -> ``[B, H, N, D]`` (a view)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, H, N, D]`` -> ``[B, N, H * D]``."""
    return x.transpose(1, 2).flatten(2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding.

    Args:
        x: ``[B, H, N, D]``, at least float32.
        cos, sin: ``[N, D / 2]``, of the tokens' own positions.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class RotaryGrid(nn.Module):
    """Two-dimensional rotary tables for the tokens of all scales, in generation order.

    A token sits at the centre of its cell, measured on one grid common to all scales. The cells are kept
    as integers, so that casting the model to a low precision cannot blur them.
    """

    cells: Tensor  # [L, 2] int64: row and column
    sides: Tensor  # [L, 1] int64: cells a side of the token's scale
    scale_of: Tensor  # [L] int64: the token's scale

    def __init__(self, patch_nums: Sequence[int], head_width: int) -> None:
        super().__init__()
        self.frequencies = head_width // 4
        counts = torch.tensor([side * side for side in patch_nums])
        cells = [
            torch.cartesian_prod(torch.arange(side), torch.arange(side)).view(-1, 2) for side in patch_nums
        ]
        scale_of = torch.arange(len(patch_nums)).repeat_interleave(counts)
        self.register_buffer("cells", torch.cat(cells), persistent=False)
        self.register_buffer("sides", torch.tensor(patch_nums)[scale_of, None], persistent=False)
        self.register_buffer("scale_of", scale_of, persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        """``cos`` and ``sin``, each ``[L, head_width / 2]`` float32: angles of the row, then the column."""
        device = self.cells.device
        low, high = math.log10(LOWEST_ROPE_CYCLES), math.log10(HIGHEST_ROPE_CYCLES)
        frequencies = math.pi * torch.logspace(low, high, self.frequencies, device=device)
        centres = (self.cells + 0.5) / self.sides * ROPE_GRID
        angles = (centres.unsqueeze(-1) * frequencies).flatten(1)
        return angles.cos(), angles.sin()
