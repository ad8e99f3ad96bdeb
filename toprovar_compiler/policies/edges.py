"""Edge strength of pictures and feature maps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

_SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


def sobel_magnitude(maps: Tensor) -> Tensor:
    """sqrt(Gx^2 + Gy^2) of each channel, Gx and Gy its 3x3 Sobel gradients, border pixels repeated.

    maps ``[B, C, H, W]`` floating -> ``[B, C, H, W]``, at least float32. Raises nothing.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    along = torch.tensor(_SOBEL, dtype=maps.dtype, device=maps.device)
    kernels = torch.stack((along, along.t()))[:, None]
    planes = pad(maps.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    gradients = conv2d(planes, kernels)
    return gradients.square().sum(1).sqrt().reshape(maps.shape)
