"""Whether a block gives the same results, but for rounding, when it is run in another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_UNITS = 4.0  # of a block in bfloat16 whose results are float32: its products round apart by a few units


def coarseness(block: nn.Module) -> float:
    """The largest eps that ``block`` computes with: its parameters', or autocast's on their device."""
    parameters = [each for each in block.parameters() if each.is_floating_point()]
    dtypes = {each.dtype for each in parameters}
    for device in {each.device.type for each in parameters}:
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def are_alike(one: Any, other: Any, coarseness: float) -> bool:
    """Equal but for the rounding of sums in another order, as a share of the largest number.

    That is half of the digits of the results' dtype, or four units of the ``coarseness`` that they were
    computed with, whichever is more. What is no tensor of floating point must be equal.
    """
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    tolerance = max(torch.finfo(one.dtype).eps ** 0.5, _UNITS * coarseness)
    return bool((one - other).abs().max() <= tolerance * one.abs().max())
