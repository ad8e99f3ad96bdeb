"""The images of the page that are no pictures of the model: entropy maps and differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toprovar_compiler import figures
from toprovar_compiler.schedule import grid_of

if TYPE_CHECKING:
    from PIL.Image import Image

AMPLIFIED = 4
"""By how much differences are multiplied."""
# Colours of viridis: dark to light in even steps, for those too who cannot tell red from green.
RAMP = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
UNKNOWN = "#8c8c8c"


def difference(a: Tensor, b: Tensor) -> Image:
    """|a - b| of pictures [3, H, W] in [0, 1], times :data:`AMPLIFIED`, clipped at white."""
    return figures.to_picture((a - b).abs() * AMPLIFIED)


def heat_map(values: Tensor, low: float, high: float) -> Image:
    """One pixel per token.

    Args:
        values: [N]; on a square grid in row-major order, else one line. What is not finite is grey.
        low, high: the values of the first and the last colour of :data:`RAMP`.
    """
    grid = values.reshape(grid_of(values.numel()) or (1, -1)).double()
    known = grid.isfinite()
    place = (grid.nan_to_num(low, low, low) - low) / (high - low) if high > low else torch.zeros_like(grid)
    place = place.clamp(0, 1) * (len(RAMP) - 1)
    colours = torch.tensor([_rgb(colour) for colour in RAMP])
    below = place.floor().long().clamp(max=len(RAMP) - 2)
    mixed = torch.lerp(colours[below], colours[below + 1], (place - below)[..., None].float())
    mixed[~known] = torch.tensor(_rgb(UNKNOWN))
    return figures.to_picture(mixed.permute(2, 0, 1))


def small(picture: Image, side: int) -> Image:
    """A copy that fits into ``side`` x ``side`` pixels; never larger than it was."""
    copy = picture.copy()
    copy.thumbnail((side, side))
    return copy


def _rgb(colour: str) -> list[float]:
    """``#rrggbb`` in [0, 1]."""
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
