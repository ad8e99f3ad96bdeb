"""Convolutional encoder and decoder: 256x256 pictures to 32x32 features and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import NORM_EPS, at_least_float32

DOWNSAMPLING = 8  # a latent cell covers this many pixels each way
RESIDUAL_INIT = 0.3


class PixelNorm(nn.Module):
    """Root-mean-square normalisation over channels, with a gain per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same shape and dtype, computed in at least float32."""
        wide = at_least_float32(x)
        scale = torch.rsqrt(wide.square().mean(1, keepdim=True) + NORM_EPS)
        return (wide * scale * self.gain[:, None, None]).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = PixelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = PixelNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.bias)
        with torch.no_grad():
            self.conv2.weight.mul_(RESIDUAL_INIT)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> the same shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Upsample(nn.Module):
    """Doubles the resolution: a 1x1 convolution, then a pixel shuffle."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels * 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, out_channels, 2H, 2W]``."""
        return F.pixel_shuffle(self.conv(x), 2)


def make_encoder(code_width: int, widths: tuple[int, int, int]) -> nn.Sequential:
    """Pictures ``[B, 3, 8G, 8G]`` in [-1, 1] -> features ``[B, code_width, G, G]``."""
    a, b, c = widths
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(12, a, 3, padding=1),
        ResidualBlock(a),
        nn.Conv2d(a, b, 2, 2),
        ResidualBlock(b),
        ResidualBlock(b),
        nn.Conv2d(b, c, 2, 2),
        ResidualBlock(c),
        ResidualBlock(c),
        PixelNorm(c),
        nn.Conv2d(c, code_width, 1),
    )


def make_decoder(code_width: int, widths: tuple[int, int, int]) -> nn.Sequential:
    """Features ``[B, code_width, G, G]`` -> pictures ``[B, 3, 8G, 8G]``, near [-1, 1]."""
    a, b, c = widths
    return nn.Sequential(
        nn.Conv2d(code_width, c, 3, padding=1),
        ResidualBlock(c),
        ResidualBlock(c),
        Upsample(c, b),
        ResidualBlock(b),
        ResidualBlock(b),
        Upsample(b, a),
        ResidualBlock(a),
        ResidualBlock(a),
        PixelNorm(a),
        nn.SiLU(),
        nn.Conv2d(a, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )
