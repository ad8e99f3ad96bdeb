"""What a calibration's gates are fitted to: where the dense picture has its edges."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from toprovar_compiler.policies.gate_fit import standardised
from toprovar_compiler.policies.oracle import edge_maps
from toprovar_compiler.schedule import grid_of

RIDGE = 1e-3
"""Penalty on the squares of standardised weights, per token: the calibration's many tokens need little."""


def importance(pictures: Tensor, tokens: int) -> Tensor | None:
    """The edge strength under each token, z-scored over each picture.

    pictures ``[B, 3, H, W]`` -> ``[B, tokens]`` float64, or None where the tokens form no square grid. A
    picture without edges has 0 everywhere.
    """
    grid = grid_of(tokens)
    if grid is None:
        return None
    return standardised(adaptive_avg_pool2d(edge_maps(pictures), grid).flatten(1))
