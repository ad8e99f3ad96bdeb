"""Whether a block gives the same results, but for rounding, when it is run in another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_UNITS = 4.0  # of a block in bfloat16 whose results are float32: its products round apart by a few units
_HALF_OF_FLOAT32 = torch.finfo(torch.float32).eps ** 0.5
_COARSEST = torch.finfo(torch.bfloat16).eps  # below it are formats to store in, not to add up in


def coarsest_eps(block: nn.Module) -> float:
    """The largest eps that ``block`` computes with: its parameters', or autocast's on their device."""
    parameters = [each for each in block.parameters() if each.is_floating_point()]
    dtypes = {each.dtype for each in parameters}
    for device in {each.device.type for each in parameters}:
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
    return min(max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0), _COARSEST)


def are_alike(one: Any, other: Any, eps: float) -> bool:
    """Equal but for the rounding of sums in another order.

    The largest difference may be a share of the largest number: half of the digits of the results' dtype, or
    four units of the ``eps`` that they were computed with, whichever is more. The mean difference may be four
    units of the mean number, or half of the digits of float32: a stream may have a number or two that are far
    larger than all others. What is no tensor of floating point must be equal.
    """
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    own = torch.finfo(one.dtype).eps
    apart, size = (one.double() - other.double()).abs(), one.double().abs()
    largest = apart.max() <= max(own**0.5, _UNITS * eps) * size.max()
    mean = apart.mean() <= max(_HALF_OF_FLOAT32, _UNITS * max(own, eps)) * size.mean()
    return bool(largest & mean)
